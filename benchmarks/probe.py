"""One figure of the `dart` that this process imports, of whatever version: see `benchmarks.against`."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.shapes import SHAPES, build, workload

LAYERS = 4  # of the shape of LLaVA-1.5-7B: enough to tell
SELECTIONS = {620: (576, 128), 2900: (2880, 320)}  # tokens: visual ones, budget
WIDTH, HEADS = 4096, 32


def median_ms(call: Any, repeats: int, warm_up: int = 1) -> float:
    """Milliseconds of a call."""
    times = []
    for number in range(warm_up + repeats):
        began = time.perf_counter()
        call()
        if number >= warm_up:
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def measure(case: str, repeats: int) -> float:
    """Milliseconds of one case with the `dart` that this process imports."""
    import dart

    torch.manual_seed(0)
    if case.startswith("select-"):
        tokens = int(case.split("-")[1])
        visual, keep = SELECTIONS[tokens]
        hidden, keys = torch.randn(tokens, WIDTH), torch.randn(HEADS, tokens, WIDTH // HEADS)
        mask = torch.zeros(tokens, dtype=torch.bool)
        mask[10 : 10 + visual] = True
        config = dart.DartConfig(keep=keep)
        return median_ms(lambda: dart.select(hidden, keys, mask, config), 10 * repeats, 5)
    if case.startswith("135m"):
        model, keep = build(SHAPES["decoder-135m"], torch.device("cpu"), torch.float32, "sdpa"), 320
        work = workload(SHAPES["decoder-135m"], model, 1)
    else:
        shape = replace(SHAPES["llava-1.5-7b"], layers=LAYERS)
        model, keep = build(shape, torch.device("cpu"), torch.bfloat16, "sdpa"), 128
        work = workload(shape, model, 1)
    with torch.inference_mode(), dart.prune(model, dart.DartConfig(keep=keep)):
        return median_ms(lambda: model(**work.inputs, logits_to_keep=1), repeats)
