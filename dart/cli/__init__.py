"""Ask a vision-language model about images or videos, without DART and with it.

Prints both answers, the tokens, the times, the size of the KV cache, and draws which patches were kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dart.config import PIVOT_ORDERS, SCOPES, DartConfig
from dart.utils import (
    Parser,
    UserError,
    add_revision,
    checkpoint_folder,
    exits_cleanly,
    provenance,
    write_json,
    write_text,
)

if TYPE_CHECKING:  # torch and transformers take seconds to import: not for --help and wrong arguments
    from dart.cli.measure import Answer

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")
DTYPES = ("float32", "float16", "bfloat16")
MOST = 2**31 - 1  # of a count
LAST_PORT = 65535
TIMES = "times: one run each after {} to warm up, on {}; reading the images is not counted, the vision tower is"


def budget(text: str) -> int | float:
    """A number of tokens, or a share of them."""
    try:
        value = float(text) if any(sign in text for sign in ".eE") else int(text)
    except ValueError:
        value = 0
    whole = isinstance(value, int)
    if (whole and value < 1) or (not whole and not 0 < value < 1):
        raise argparse.ArgumentTypeError(f"expected tokens (1, 2, ...) or a share between 0 and 1, got {text!r}")
    return value


def count(least: int, most: int = MOST) -> Any:
    """The type of an argument: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}, got {text!r}")
        return int(text)

    return parse


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: expected a file in a folder that exists")
    return path


def _image_output(text: str) -> Path:
    if Path(text).suffix.lower() not in Image.registered_extensions():
        raise argparse.ArgumentTypeError(f"{text} names no image format: expected for example out.png")
    return _output(text)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m dart`."""
    out = Parser(prog="python -m dart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--model", required=True, help="checkpoint folder or hub name of any supported family")
    add_revision(out)
    out.add_argument("--image", nargs="+", action="extend", default=[], metavar="FILE", help="one image or several")
    out.add_argument("--video", nargs="+", action="extend", default=[], metavar="PATH", help="file or folder of frames")
    out.add_argument("--question", required=True, help="what to ask")
    out.add_argument("--frames", type=count(1), default=8, help="frames of a video, at most (8)")
    out.add_argument("--fps", type=_rate, help="frames per second of the video (default: its own; 2 for a folder)")
    out.add_argument("--keep", type=budget, default=128, help="visual tokens to keep: 128, or a share such as 0.111")
    out.add_argument("--exact", action="store_true", help="keep exactly so many, not rounded to whole pivots")
    out.add_argument("--layer", type=count(0), default=2, help="drop tokens before this decoder layer (2)")
    out.add_argument("--strategy", default="dart", help="how to choose them (dart); a wrong name lists all")
    out.add_argument(
        "--pivot-order", choices=PIVOT_ORDERS, default="norm", help="in which order the pivots choose (norm)"
    )
    out.add_argument("--scope", choices=SCOPES, default="span", help="a quota per image, or one for all")
    out.add_argument("--image-pivots", type=count(0), default=4, help="pivots in the image (4)")
    out.add_argument("--text-pivots", type=count(0), default=4, help="pivots in the text (4)")
    out.add_argument("--seed", type=count(0), default=0, help="for strategies that draw at random")
    out.add_argument("--max-new-tokens", type=count(1), default=64, help="of an answer, at most (64)")
    out.add_argument("--warm-up", type=count(0), default=1, help="untimed runs of one token before each (1)")
    out.add_argument("--device", help="default: a GPU where there is one, else cpu")
    out.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else the checkpoint's")
    out.add_argument(
        "--attn-implementation", choices=ATTENTION, help="attention kernel (default: transformers' choice)"
    )
    out.add_argument("--save-overlay", type=_image_output, metavar="FILE", help="draw the kept patches")
    out.add_argument("--save-html", type=_output, metavar="FILE", help="write all of it as one page")
    out.add_argument("--json", type=_output, metavar="FILE", help="write answers and figures")
    return out


def config_of(args: argparse.Namespace) -> DartConfig:
    """The settings that the flags ask for. Raises what `DartConfig` does."""
    return DartConfig(
        keep=args.keep,
        layer=args.layer,
        image_pivots=args.image_pivots,
        text_pivots=args.text_pivots,
        strategy=args.strategy,
        pivot_order=args.pivot_order,
        scope=args.scope,
        exact=args.exact,
        seed=args.seed,
    )


def messages(question: str, images: int, videos: int) -> list[dict[str, Any]]:
    """A user's turn, as chat templates take it."""
    content = [{"type": "image"}] * images + [{"type": "video"}] * videos + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def note_on_pruning(pruned: Answer, config: DartConfig) -> str | None:
    """Why nothing was dropped, when nothing was."""
    layers = len(pruned.cache_tokens)
    if pruned.report is None:
        return f"nothing was pruned: layer {config.layer} is beyond the model's {layers} decoder layers"
    if len(pruned.kept) < pruned.visual:
        return None
    return (
        f"nothing was pruned: there are {pruned.visual} visual tokens, and keep={config.keep} asks for no fewer "
        "(an image that small stays whole)"
    )


def rows_of(answers: list[Answer]) -> list[tuple[str, list[str]]]:
    """(what, [without DART, with DART])."""

    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    def means(each: Answer) -> str:
        return f"{each.report.mean_visual_tokens[0]:.0f}" if each.report else str(each.visual)

    return [
        ("visual tokens, last layers", [str(len(each.kept)) for each in answers]),
        ("visual tokens, mean over layers", [means(each) for each in answers]),
        ("all tokens, last layers", [str(each.cache_tokens[-1]) for each in answers]),
        ("vision tower + prefill, ms", [milliseconds(1000 * each.prefill_s) for each in answers]),
        ("decoding, ms per token", [milliseconds(each.decode_ms_per_token) for each in answers]),
        ("KV cache after prefill, bytes", [f"{each.cache_bytes:,}" for each in answers]),
    ]


def table(rows: list[tuple[str, list[str]]], texts: list[str]) -> str:
    """Both answers and `rows_of` as aligned text."""
    lines = [f"{'':34}{'without DART':>16}{'with DART':>16}"]
    lines += [f"{name:34}{before:>16}{after:>16}" for name, (before, after) in rows]
    return "\n".join([f"without DART: {texts[0]}", f"with DART:    {texts[1]}", *lines])


def figures(each: Answer, text: str) -> dict[str, Any]:
    """One of the two runs, for the JSON file; `_ms` in milliseconds, `_bytes` in bytes."""
    return {
        "answer": text,
        "answer_tokens": len(each.ids),
        "visual_tokens": each.visual,
        "visual_tokens_kept": len(each.kept),
        "prefill_ms": 1000 * each.prefill_s,
        "decode_ms_per_token": each.decode_ms_per_token,
        "kv_cache_bytes": each.cache_bytes,
        "kv_cache_tokens": each.cache_tokens,
    }


def save_image(image: Image.Image, path: Path) -> None:
    """Replace `path` in one step."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    image.save(temporary)
    os.replace(temporary, path)


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    """The command `python -m dart`, and `serve`. argv: the words after it; None: the process's own."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["serve"]:
        from dart.serve.command import main as serve

        return serve(given[1:])
    args = parser().parse_args(given)
    if not args.image and not args.video:
        raise UserError("there is nothing to look at: give --image FILE or --video PATH")
    config = config_of(args)
    from dart import strategies
    from dart.media import read_image, read_video

    images = [read_image(path) for path in args.image]
    videos = [read_video(path, args.frames, args.fps) for path in args.video]
    strategies.in_model(config.strategy)
    from transformers.utils import logging

    from dart.cli.loading import load
    from dart.cli.measure import ask_both
    from dart.cli.page import page
    from dart.viz import draw_views

    logging.disable_progress_bar()
    loaded = load(checkpoint_folder(args.model, args.revision), args.device, args.dtype, args.attn_implementation)
    prompt = loaded.prompt(messages(args.question, len(images), len(videos)), images, videos)
    views = prompt.views() if args.save_overlay or args.save_html else []
    answers = ask_both(loaded.model, prompt, config, args.warm_up, args.max_new_tokens)
    texts = [loaded.tokenizer.decode(each.ids, skip_special_tokens=True).strip() for each in answers]
    model, kind = loaded.model, loaded.model.config.model_type
    about = f"model: {args.model} ({kind}), {str(model.dtype).removeprefix('torch.')}, {model.device}"
    rows = rows_of(answers)
    notes = [TIMES.format(f"{args.warm_up} of one token", model.device)]
    if note := note_on_pruning(answers[1], config):
        notes.append(note)
    print("\n".join([about, args.question, table(rows, texts), *notes]))
    if args.save_overlay:
        save_image(draw_views(views, answers[1].kept), args.save_overlay)
        print(f"kept patches: {args.save_overlay}")
    if args.save_html:
        html = page(about, args.question, (texts[0], texts[1]), rows, notes, views, answers[1].kept)
        write_text(args.save_html, html)
        print(f"page: {args.save_html}")
    if args.json:
        runs = {
            name: figures(each, text) for name, each, text in zip(("unpruned", "dart"), answers, texts, strict=True)
        }
        write_json(args.json, {**provenance(), "model_type": kind, "kept": answers[1].kept, **runs})
