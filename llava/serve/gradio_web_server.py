"""A page in the browser: ask a model with all visual tokens and with few of them. See docs/demo.md.

python -m llava.serve.gradio_web_server
"""

from __future__ import annotations

import argparse
import os
import queue
import reprlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from typing import Any

import dart
from dart import strategies
from dart.cli import ATTENTION, DTYPES, LAST_PORT, MOST, count, messages, note_on_pruning, rows_of
from dart.cli.loading import Loaded, Prompt, TransformersModel, load
from dart.cli.measure import Answer, Stream, answer
from dart.media import read_image, read_video
from dart.serve.command import bound
from dart.utils import (
    MEMORY_IS_SHORT,
    Parser,
    UserError,
    add_revision,
    checkpoint_folder,
    exits_cleanly,
    needed,
    one_line,
)
from dart.viz import draw_views
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, or_embedded

TOKENS = 576  # of LLaVA-1.5's images: the slider's range until there is something to look at
FIRST_SHARE = 0.222  # of them: where the slider stands at first (128)
PICTURE_PX = 560
LONGEST_QUESTION = 2000  # characters
LARGEST_FILE = "64mb"
DAY_S = 24 * 60 * 60  # after which uploads are deleted
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # the visitor's own
SHORT = "\nAnswer the question using a single word or phrase."  # LLaVA's words, which the embedded model has learned
EXAMPLES = (
    ("scene_0000.jpg", f"What number is on the green sign?{SHORT}"),
    ("scene_0001.jpg", f"What color is the star?{SHORT}"),
)
GRADIO_ASKS_FOR = "127.0.0.1"  # its port, too, whatever the host
Payload = dict[str, Any] | None  # an upload as Gradio sends it


@dataclass(frozen=True)
class Asked:
    """What a visitor chose. image, video: paths of uploads; keep: visual tokens after the strategy's last stage.

    The last three are what was sent, which may be of any type: `Demo.ask` checks them.
    """

    image: str | None
    video: str | None
    question: Any
    keep: Any
    strategy: Any


@dataclass(frozen=True)
class Shown:
    """What the page shows: the answers so far and, at the end, the figures (Markdown) and the kept patches."""

    before: str = ""
    after: str = ""
    figures: str | None = None
    kept: Any = None


class Demo:
    """One model, asked by all visitors in turns: whatever touches it runs in one thread, an answer at a time."""

    def __init__(self, loaded: Loaded, layer: int, frames: int, warm_up: int, max_new_tokens: int):
        self.loaded, self.layer, self.frames, self.warm_up = loaded, layer, frames, warm_up
        self.max_new_tokens = max_new_tokens
        self.worker = ThreadPoolExecutor(1, "model")
        self.strategies, self.refused = self._possible()
        self.takes_videos = (
            isinstance(loaded, TransformersModel) and getattr(loaded.processor, "video_processor", None) is not None
        )

    def visual_tokens(self, image: str | None, video: str | None) -> int:
        """Of the image and the video together. Raises UserError or ValueError for what cannot be read."""
        return len(self._in_turn(self._prompt, image, video, "?").result().positions)

    def ask(self, asked: Asked) -> Iterator[Shown]:
        """Both answers as they grow, then the figures. Raises UserError, ValueError or TypeError for bad input."""
        if not isinstance(asked.question, str) or not asked.question.strip():
            raise UserError("there is no question: type one")
        if len(asked.question) > LONGEST_QUESTION:
            raise UserError(f"the question has {len(asked.question)} characters: at most {LONGEST_QUESTION} are taken")
        if asked.strategy not in self.strategies:
            raise UserError(
                f"this model and page have no method {_named(asked.strategy)}: choose {', '.join(self.strategies)}"
            )
        config = self._config(asked.strategy, _whole(asked.keep))
        prompt = self._in_turn(self._prompt, asked.image, asked.video, asked.question).result()
        texts, answers = ["", ""], []
        gone = threading.Event()
        try:
            for k, setting in enumerate((None, config)):
                pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
                work = self._in_turn(self._answer, prompt, setting, pieces.put, gone.is_set)
                while (piece := pieces.get()) is not None:
                    texts[k] += piece
                    yield Shown(*(text.strip() for text in texts))
                answers.append(work.result())
        finally:  # a visitor who left is answered no further
            gone.set()
        kept = draw_views(prompt.views(), answers[1].kept)
        yield Shown(texts[0].strip(), texts[1].strip(), self._figures(answers, config), kept)

    def _possible(self) -> tuple[list[str], dict[str, str]]:
        """The strategies that this model can do, and why it cannot do the others. Raises TypeError: none at all."""
        can, cannot = [], {}
        dart.prune(self.loaded.model, self._config("dart", 1)).remove()
        for name in strategies.available():
            try:
                strategies.in_model(name)
                dart.prune(self.loaded.model, self._config(name, 1)).remove()
                can.append(name)
            except (TypeError, ValueError) as error:
                cannot[name] = one_line(error)
        return can, cannot

    def _config(self, strategy: str, keep: int) -> dart.DartConfig:
        return dart.DartConfig(keep=keep, exact=True, layer=self.layer, strategy=strategy)

    def _in_turn(self, work: Callable[..., Any], *given: Any) -> Future:
        return self.worker.submit(work, *given)

    def _prompt(self, image: str | None, video: str | None, question: str) -> Prompt:
        if not image and not video:
            raise UserError("there is nothing to look at: upload a picture" + " or a video" * self.takes_videos)
        images = [_read(image, read_image)] if image else []
        videos = [_read(video, read_video, self.frames, None)] if video else []
        prompt = self.loaded.prompt(messages(question, len(images), len(videos)), images, videos)
        longest = getattr(self.loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        # LLaVA's own format has a placeholder for each image where transformers' has its tokens
        length = prompt.skip or prompt.inputs["input_ids"].shape[-1] - len(images) + len(prompt.positions)
        if longest and length + self.max_new_tokens > longest:
            raise UserError(f"{length} tokens of the prompt and {self.max_new_tokens} of an answer exceed {longest}")
        return prompt

    def _answer(
        self,
        prompt: Prompt,
        config: dart.DartConfig | None,
        tell: Callable[[str | None], None],
        gone: Callable[[], bool],
    ) -> Answer:
        """Tells the pieces of the answer, and None at its end."""
        try:
            if gone():
                raise UserError("the visitor has left")
            for _ in range(self.warm_up):
                answer(self.loaded.model, prompt, config, 1)
            stream = Stream(tell, gone, prompt.skip, self.loaded.tokenizer)
            found = answer(self.loaded.model, prompt, config, self.max_new_tokens, stream)
            stream.grow(found.ids, last=True)
            return found
        finally:
            tell(None)

    def _figures(self, answers: list[Answer], config: dart.DartConfig) -> str:
        before, after = answers
        lines = [f"**{len(after.kept)} of {before.visual} visual tokens** stay ({config.strategy})", ""]
        lines += ["| | all tokens | fewer tokens |", "|---|--:|--:|"]
        lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows_of(answers)]
        if note := note_on_pruning(after, config):
            lines += ["", note]
        return "\n".join(lines)


def _whole(keep: Any) -> int:
    """The number of tokens to keep. Raises UserError for whatever else was sent."""
    if type(keep) not in (int, float) or keep % 1 or keep < 1:
        raise UserError(f"tokens to keep: expected a whole number of 1 or more, got {_named(keep)}")
    return int(min(keep, MOST))


def _named(sent: Any) -> str:
    """What was sent, for a message about it."""
    return "nothing" if sent is None else reprlib.repr(sent)


def _path(payload: Payload) -> str | None:
    return payload["path"] if payload else None


def _read(path: str, read: Callable[..., Any], *settings: Any) -> Any:
    """An upload. A UserError names the file as the visitor does, without the folder that it lies in here."""
    try:
        return read(path, *settings)
    except UserError as error:
        raise UserError(str(error).replace(os.path.join(os.path.dirname(path), ""), "")) from error


def build(demo: Demo, name: str) -> Any:
    """The page, a `gradio.Blocks`.

    `preprocess=False` hands on what was sent: Gradio's own checks raise errors that nobody can read, and it would
    decode uploads that `dart.media` reads, with its limits and messages. It checks all the same that a file is an
    upload.
    """
    gr = needed("gradio", "demo")

    def told(error: Exception) -> Any:
        return gr.Error(escape(one_line(error)), title="Please change this", print_exception=False)

    def sized(image: Payload, video: Payload = None) -> Any:
        if not image and not video:
            return gr.skip()
        try:
            total = demo.visual_tokens(_path(image), _path(video))
        except (UserError, ValueError) as error:
            raise told(error) from error
        first = max(1, round(FIRST_SHARE * total))
        return gr.Slider(maximum=total, value=first, label=f"Visual tokens to keep, of {total}")

    def ask(question: Any, keep: Any, strategy: Any, image: Payload, video: Payload = None) -> Iterator[Any]:
        asked = Asked(_path(image), _path(video), question, keep, strategy)
        try:
            for shown in demo.ask(asked):
                done = shown.figures is not None
                yield shown.before, shown.after, *((shown.figures, shown.kept) if done else (gr.skip(), gr.skip()))
        except (UserError, ValueError, TypeError) as error:
            raise told(error) from error
        except RuntimeError as error:
            if not any(words in str(error) for words in MEMORY_IS_SHORT):
                raise
            raise told(UserError("there is too little memory for this: take a smaller picture")) from error

    def ask_again(question: Any, keep: Any, strategy: Any, image: Payload, video: Payload = None) -> Iterator[Any]:
        """When the slider or the method moves: nothing happens as long as there is nothing to ask."""
        if question and (image or video):
            yield from ask(question, keep, strategy, image, video)
        else:
            yield (gr.skip(),) * 4

    with gr.Blocks(title=f"DART: {name}", analytics_enabled=False, delete_cache=(DAY_S, DAY_S)) as page:
        gr.Markdown(f"# The same answer from fewer visual tokens\n{escape(name)}, with all of them and with few.")
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(
                    type="filepath",
                    sources=["upload", "clipboard"],
                    label="Picture",
                    height=PICTURE_PX // 2,
                    elem_id="picture",
                )
                looked_at = [image]
                if demo.takes_videos:
                    with gr.Accordion("Video", open=False):
                        video = gr.Video(sources=["upload"], label=f"Video, at most {demo.frames} frames of it")
                    looked_at.append(video)
                question = gr.Textbox(label="Question", lines=2, max_length=LONGEST_QUESTION, elem_id="question")
                keep = gr.Slider(
                    1, TOKENS, value=round(FIRST_SHARE * TOKENS), step=1, label="Visual tokens to keep", elem_id="keep"
                )
                strategy = gr.Dropdown(demo.strategies, value="dart", label="Method", elem_id="method")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                scenes = EMBEDDED_DATA / "textvqa" / "train_images"
                examples = [[str(scenes / file), text] for file, text in EXAMPLES if (scenes / file).is_file()]
                if examples:
                    gr.Examples(examples, [image, question], cache_examples=False)
            with gr.Column(scale=3):
                with gr.Row():
                    before = gr.Textbox(label="Answer with all tokens", lines=3, elem_id="before")
                    after = gr.Textbox(label="Answer with fewer tokens", lines=3, elem_id="after")
                figures = gr.Markdown(elem_id="figures")
                kept = gr.Image(
                    label="What stays: kept patches are bright",
                    format="png",
                    height=PICTURE_PX,
                    elem_id="kept",
                    interactive=False,
                )
        for method, why in demo.refused.items():
            gr.Markdown(f"<small>not here: **{method}**: {escape(why)}</small>")
        chosen, results = [question, keep, strategy, *looked_at], [before, after, figures, kept]
        for each in looked_at:
            each.change(sized, looked_at, keep, show_progress="hidden", preprocess=False)
        gr.on([button.click, question.submit], ask, chosen, results, preprocess=False)
        gr.on([keep.release, strategy.input], ask_again, chosen, results, trigger_mode="always_last", preprocess=False)
    return page


def parser() -> argparse.ArgumentParser:
    out = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument(
        "--model-path",
        type=or_embedded,
        default=str(EMBEDDED_MODEL),
        help="checkpoint folder or hub name (the embedded model)",
    )
    add_revision(out)
    out.add_argument("--host", default="127.0.0.1", help="address to serve at (127.0.0.1: this machine alone)")
    out.add_argument("--port", type=count(1, LAST_PORT), default=7860, help="port to serve at (7860)")
    out.add_argument("--layer", type=count(0), default=2, help="drop tokens before this decoder layer (2)")
    out.add_argument("--frames", type=count(1), default=8, help="frames of a video, at most (8)")
    out.add_argument("--max-new-tokens", type=count(1), default=128, help="of an answer, at most (128)")
    out.add_argument("--warm-up", type=count(0), default=1, help="untimed runs of one token before each answer (1)")
    out.add_argument("--device", help="default: a GPU where there is one, else cpu")
    out.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else the checkpoint's")
    out.add_argument(
        "--attn-implementation", choices=ATTENTION, help="attention kernel (default: transformers' choice)"
    )
    return out


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    gr = needed("gradio", "demo")
    for host in (args.host, GRADIO_ASKS_FOR):
        bound(host, args.port).close()
    loaded = load(checkpoint_folder(args.model_path, args.revision), args.device, args.dtype, args.attn_implementation)
    try:
        demo = Demo(loaded, args.layer, args.frames, args.warm_up, args.max_new_tokens)
    except TypeError as error:  # a family that DART does not know
        raise UserError(one_line(error)) from error
    name = os.path.basename(os.path.normpath(args.model_path))
    build(demo, name).launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        max_file_size=LARGEST_FILE,
        footer_links=[],
        run_history=False,
        theme=gr.themes.Base(**FONTS),
    )


if __name__ == "__main__":
    main()
