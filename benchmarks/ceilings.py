"""What the machine gives: bytes per second and multiplications per second, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}
MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
REPEATS, WARM_UP = 7, 2


def seconds_of(function: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median seconds of `function()`; the device is waited for."""
    times = []
    for k in range(WARM_UP + repeats):
        _wait(device)
        began = time.perf_counter()
        function()
        _wait(device)
        if k >= WARM_UP:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second (multiplications and additions) of a large square matrix product."""
    side = MATRIX_SIDE[device.type]
    left, right = torch.randn(2, side, side, device=device).to(dtype).unbind()
    out = torch.empty_like(left)
    return 2 * side**3 / seconds_of(lambda: torch.mm(left, right, out=out), device)
