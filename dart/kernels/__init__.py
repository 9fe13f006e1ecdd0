"""The selection and the gathering behind it as Triton kernels, and when they run.

`DART_KERNELS`, read when a model is pruned: `torch` (the default, since the kernels never ran on a GPU): never; `auto`:
for CUDA tensors where Triton is installed; `triton`: always, on a CPU through Triton's interpreter
(`TRITON_INTERPRET=1`, slow: for tests).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dart.config import DartConfig
    from dart.strategies.base import Batch

logger = logging.getLogger(__name__)
VARIABLE, MODES = "DART_KERNELS", ("auto", "triton", "torch")
INTERPRETER = "TRITON_INTERPRET"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Inputs = tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, torch.Tensor | None]


@functools.cache
def installed() -> bool:
    """Is Triton there?"""
    return importlib.util.find_spec("triton") is not None


def chosen() -> str:
    """The mode that DART_KERNELS asks for. Raises ValueError for an unknown one."""
    mode = os.environ.get(VARIABLE, "torch")
    if mode not in MODES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def active(device: torch.device, mode: str) -> bool:
    """Do the kernels run for tensors there? Raises ValueError for a mode that cannot be."""
    cuda = device.type == "cuda"
    if mode == "torch" or (mode == "auto" and not cuda):
        return False
    if mode == "auto":
        if not installed():
            _say_once("triton is not installed: DART selects with torch's own operations, which takes longer")
        return installed()
    if not installed():
        raise ValueError(f"{VARIABLE}=triton, but triton is not installed: pip install triton")
    if not cuda and os.environ.get(INTERPRETER) != "1":
        raise ValueError(f"{VARIABLE}=triton on {device} needs {INTERPRETER}=1, set before Python starts")
    return True


@functools.cache
def _say_once(line: str) -> None:
    logger.warning(line)


def select_rows(batch: Batch, config: DartConfig) -> torch.Tensor | None:
    """`Strategy.reduce_batch` of the strategy `dart`; None where torch has to do it.

    That is: without kernels, for `pivot_order="original"` (CPython's set order needs the host), for forced pivots and
    for dtypes that the kernels do not know.
    """
    forced = any(group.forced is not None for row in batch.groups for group in row)
    if forced or config.pivot_order != "norm" or not _selects(batch):
        return None
    from dart.kernels.launch import Selection

    return Selection.of(batch, config).run(batch.hidden, batch.norm, batch.keys)


def spread_rows(batch: Batch, rounds: int | None, ahead: int, mean: bool, distinct: bool) -> torch.Tensor | None:
    """`Strategy.reduce_batch` of the strategy `spread` with these options; None where torch has to do it."""
    if not _selects(batch):
        return None
    from dart.kernels.spread import Spreading

    return Spreading.of(batch, rounds, ahead, mean, distinct).run(batch.hidden)


def _selects(batch: Batch) -> bool:
    return batch.hidden.dtype in DTYPES and active(batch.hidden.device, batch.kernels)


def gather(rows: torch.Tensor, hidden: torch.Tensor, angles: Any, positions: Any, mode: str) -> Inputs | None:
    """Hidden states [B, S, D], angles (cos, sin) and positions of `rows` in one launch.

    None where torch has to do it (under autograd, too).
    """
    given = (*(angles or ()), *(() if positions is None else (positions,)))
    recorded = torch.is_grad_enabled() and any(each.requires_grad for each in (hidden, *given))
    if recorded or any(each.device != hidden.device for each in given) or not active(hidden.device, mode):
        return None
    from dart.kernels.launch import gather as launched

    return launched(rows, hidden, angles, positions)
