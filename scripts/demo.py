"""The demo: questions with and without DART on the embedded model, prefill times, a picture of the kept patches.

The last line of the output is a JSON object with the figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import dart
from dart.viz import draw_kept
from llava.eval.answers import read_lines
from llava.eval.prompts import build_prompt
from llava.mm_utils import expand2square, load_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "playground" / "models" / "llava-tiny"
DATA = ROOT / "playground" / "data" / "mini" / "textvqa"
OUT = ROOT / "outputs" / "demo"
RATIO, TOKENS = "0.778", "128"
WARM_UP, REPEATS = 2, 9
GRID = 24


def accuracy(*arguments: str) -> float:
    """Run the benchmark script as a user would and read its last line."""
    command = ["bash", str(ROOT / "scripts/v1_5/eval/textvqa.sh"), *arguments]
    print("$ " + " ".join(["bash", "scripts/v1_5/eval/textvqa.sh", *arguments]), flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return json.loads(done.stdout.splitlines()[-1])["score"]


def prefill_ms(model, ids: torch.Tensor, pixels: torch.Tensor, config: dart.DartConfig) -> tuple[float, float]:
    """Median milliseconds of a prefill, vision tower included, unpruned and pruned, measured in turn."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for k in range(WARM_UP + REPEATS):
        for pruned in (False, True):
            handle = dart.prune(model, config) if pruned else None
            began = time.perf_counter()
            with torch.inference_mode():
                model(ids, images=pixels, use_cache=True)
            if k >= WARM_UP:
                times[pruned].append(1000 * (time.perf_counter() - began))
            if handle is not None:
                handle.remove()
    return statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    unpruned, pruned = accuracy(), accuracy(RATIO, TOKENS)
    tokenizer, model, processor, _ = load_pretrained_model(str(CHECKPOINT), device="cpu")
    question = next(read_lines(DATA / "llava_textvqa_val_v051_ocr.jsonl"))
    image = load_image(str(DATA / "train_images" / question["image"]))
    prompt = build_prompt(question["text"], model.config, "vicuna_v1")
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    pixels = process_images([image], processor, model.config)
    config = dart.DartConfig(keep=int(TOKENS), pivot_order="original")
    before, after = prefill_ms(model, ids, pixels, config)
    with dart.prune(model, config) as handle, torch.inference_mode():
        model(ids, images=pixels)
        report = handle.last
    start = int(torch.where(ids[0] < 0)[0][0])
    square = expand2square(image, tuple(int(255 * m) for m in processor.image_mean))
    picture = OUT / "kept_patches.png"
    draw_kept(square, (report.kept[0] - start).tolist(), (GRID, GRID)).save(picture)
    kept = f"{report.visual_before[0]} -> {report.visual_after[0]}"
    print(f"question: {question['text'].splitlines()[0]}\npicture with the kept patches: {picture.relative_to(ROOT)}")
    print(f"{'':10}{'accuracy %':>12}{'vision tokens':>16}{'prefill ms':>12}")
    print(f"{'unpruned':10}{unpruned:12.2f}{report.visual_before[0]:16d}{before:12.1f}")
    print(f"{'DART':10}{pruned:12.2f}{report.visual_after[0]:16d}{after:12.1f}")
    figures = {
        "accuracy_unpruned": unpruned,
        "accuracy_dart": pruned,
        "vision_tokens": kept,
        "prefill_ms_unpruned": round(before, 2),
        "prefill_ms_dart": round(after, 2),
        "picture": str(picture.relative_to(ROOT)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
