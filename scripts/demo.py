"""The demo: questions with and without DART, prefill times of both, an image of the kept patches.

With nothing set the embedded model answers the embedded TextVQA; --ckpt and --data name a LLaVA-1.5 checkpoint and a
folder that holds textvqa/. The last line of the output is a JSON object with the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import dart
from dart.utils import Parser, Sample, UserError, exits_cleanly, in_turns
from dart.viz import draw_kept
from llava.eval import tasks
from llava.eval.engine.prompts import build_prompt
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, ROOT
from llava.mm_utils import expand2square, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

OUT = ROOT / "outputs" / "demo"
SCRIPT = "scripts/v1_5/eval/textvqa.sh"
RATIO, TOKENS = "0.778", "128"
WARM_UP, REPEATS = 2, 9
CONVERSATION = "vicuna_v1"


def accuracy(args: argparse.Namespace, *arguments: str) -> float:
    """Run the benchmark script as a user would and read its last line. Raises UserError when it fails."""
    print("$ " + " ".join(["bash", SCRIPT, *arguments]), flush=True)
    own = {"OUT": str(args.out / "textvqa"), "OVERWRITE": "1"}
    own |= {name: str(value) for name, value in (("CKPT", args.ckpt), ("DATA", args.data)) if value is not None}
    command = ["bash", str(ROOT / SCRIPT), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | own)
    print(done.stdout, flush=True)
    if done.returncode:
        raise UserError(f"{SCRIPT} ended with code {done.returncode}; its message is above")
    return json.loads(done.stdout.splitlines()[-1])["score"]


def prefill_ms(model: Any, ids: torch.Tensor, pixels: torch.Tensor, config: dart.DartConfig) -> list[float]:
    """Median milliseconds of a prefill, vision tower included, unpruned and pruned, measured in turn."""

    def prefill(pruned: bool) -> Sample:
        with dart.prune(model, config) if pruned else contextlib.nullcontext(), torch.inference_mode():
            began = time.perf_counter()
            # The copy to the host waits for a GPU's work to end.
            model(ids, images=pixels, use_cache=True).logits[:, -1].cpu()
            return {"ms": 1000 * (time.perf_counter() - began)}

    samples = in_turns([partial(prefill, False), partial(prefill, True)], REPEATS, WARM_UP)
    return [statistics.median(sample["ms"] for sample in own) for own in samples]


def as_seen(image: Image.Image, processor: Any, mode: str | None) -> Image.Image:
    """The part of the image that reaches the vision tower: padded to a square, or its middle."""
    if mode == "pad":
        return expand2square(image, tuple(int(255 * m) for m in processor.image_mean))
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def one_example(args: argparse.Namespace) -> dict[str, Any]:
    """Prefill times and the kept patches of the benchmark's first question."""
    checkpoint, device = str(args.ckpt or EMBEDDED_MODEL), os.environ.get("DEVICE")
    tokenizer, model, processor, _ = load_pretrained_model(checkpoint, device=device)
    example = tasks.get("textvqa").examples(args.data or EMBEDDED_DATA)[0]
    image = example.picture()
    if image is None:
        raise UserError(f"question {example.question_id} has no picture to draw on")
    prompt = build_prompt(example.text, model.config, CONVERSATION)
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None].to(model.device)
    pixels = process_images([image], processor, model.config).to(model.device, model.dtype)
    config = dart.DartConfig(keep=int(TOKENS), pivot_order="original")
    times = prefill_ms(model, ids, pixels, config)
    with dart.prune(model, config) as handle, torch.inference_mode():
        model(ids, images=pixels)
        report = handle.last
    start = int(torch.where(ids[0] < 0)[0][0])
    side = round(report.visual_before[0] ** 0.5)
    seen = as_seen(image, processor, getattr(model.config, "image_aspect_ratio", None))
    picture = args.out / "kept_patches.png"
    draw_kept(seen, (report.kept[0] - start).tolist(), (side, side)).save(picture)
    print(f"question: {example.text.splitlines()[0]}\npicture with the kept patches: {os.path.relpath(picture)}")
    tokens = (report.visual_before[0], report.visual_after[0])
    return {"tokens": tokens, "prefill_ms": times, "picture": os.path.relpath(picture)}


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="a LLaVA-1.5 checkpoint's folder (default: the embedded model)")
    parser.add_argument("--data", type=Path, help="folder that holds textvqa/ (default: the embedded benchmarks)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the answers and the picture")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    scores = accuracy(args), accuracy(args, RATIO, TOKENS)
    example = one_example(args)
    print(f"{'':10}{'accuracy %':>12}{'visual tokens':>16}{'prefill ms':>12}")
    for k, name in enumerate(("unpruned", "DART")):
        print(f"{name:10}{scores[k]:12.2f}{example['tokens'][k]:16d}{example['prefill_ms'][k]:12.1f}")
    figures = {
        "accuracy_unpruned": scores[0],
        "accuracy_dart": scores[1],
        "vision_tokens": f"{example['tokens'][0]} -> {example['tokens'][1]}",
        "prefill_ms_unpruned": round(example["prefill_ms"][0], 2),
        "prefill_ms_dart": round(example["prefill_ms"][1], 2),
        "picture": example["picture"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
