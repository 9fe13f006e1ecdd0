"""The selections' kernels on a GPU beside torch's operations: `python -m benchmarks.kernels`; JSON last line.

Microseconds of one selection, final norm and gathering included: replayed as a CUDA graph (what the GPU takes), called
from Python (what a prefill sees when the GPU waits for the host), with torch's operations, and the floor: bytes that
must be read and written once, at the rate of a large copy. Inputs take turns, so that none lies in a cache.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import dart
from benchmarks.arguments import check_known, list_of, positive
from benchmarks.builds import STRATEGIES
from benchmarks.ceilings import copy_rate, seconds_of
from benchmarks.output import print_table, publish
from dart import kernels
from dart.engine.layers import gather_inputs
from dart.engine.selection import plan_batch, select_rows
from dart.strategies.base import Batch
from dart.strategies.spread import Spread
from dart.utils import DTYPES, Parser, device_of, exits_cleanly, provenance

TEXT = 35  # tokens before the image, and after it
SETS = 4  # of inputs; together larger than a GPU's cache


@dataclass(frozen=True)
class Sizes:
    """Of a model and its prompt. keys: heads and their width."""

    visual: int
    width: int
    keys: tuple[int, int]
    keep: int | float


SHAPES = {
    "llava-1.5-7b": Sizes(576, 4096, (32, 128), 128),
    "llava-next-7b": Sizes(2880, 4096, (32, 128), 320),
    "qwen2.5-vl-7b": Sizes(1280, 3584, (4, 128), 0.111),
    "video-20k": Sizes(20000, 3584, (4, 128), 0.111),
    "tiny": Sizes(64, 64, (2, 16), 16),
}


def plan(batch: Batch, config: dart.DartConfig) -> Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]:
    """From hidden states, the final norm and keys to the positions that stay: kernels alone, planned once."""
    from dart.kernels.launch import Selection
    from dart.kernels.spread import Spreading

    if config.strategy == "dart":
        return Selection.of(batch, config).run
    options = {name: value for name, value in Spread.options.items() if name != "norms"}
    spreading = Spreading.of(batch, **options)
    return lambda hidden, norm, keys: spreading.run(hidden)


class Case:
    """One selection and the gathering after it, over and over, on `SETS` inputs in turns."""

    def __init__(self, strategy: str, sizes: Sizes, batch: int, device: torch.device, dtype: torch.dtype):
        tokens, (heads, head) = sizes.visual + 2 * TEXT, sizes.keys
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = dart.DartConfig(keep=sizes.keep, strategy=strategy)
        self.norm = LlamaRMSNorm(sizes.width).to(device, dtype)
        self.angles = tuple(torch.rand(2, 1, tokens, head, **made))
        self.places = torch.arange(tokens, device=device)[None]
        self.spans = np.zeros((batch, tokens), dtype=np.int64)
        self.spans[:, TEXT : TEXT + sizes.visual] = 1
        torch.manual_seed(0)
        self.inputs = [
            (torch.randn(batch, tokens, sizes.width, **made), torch.randn(batch, heads, tokens, head, **made))
            for _ in range(SETS)
        ]

    def once(self, number: int = 0) -> torch.Tensor:
        """As in a prefill: plan, select, gather."""
        hidden, keys = self.inputs[number]
        left = select_rows(hidden, self.norm, keys, self.spans, None, self.config)
        if left is None:
            raise ValueError("this budget drops nothing: keep fewer tokens")
        gather_inputs(left.rows, hidden, self.angles, self.places, kernels.chosen())
        return left.rows

    def all(self) -> None:
        for number in range(SETS):
            self.once(number)

    def planned(self) -> Callable[[], object]:
        """All inputs' kernels, planned beforehand."""
        runs = []
        for hidden, keys in self.inputs:
            run = plan(plan_batch(hidden, self.norm, keys, self.spans, None, self.config), self.config)
            runs.append(partial(run, hidden, self.norm, keys))

        def work() -> None:
            for run, (hidden, _) in zip(runs, self.inputs, strict=True):
                gather_inputs(run(), hidden, self.angles, self.places, "triton")

        work()  # compiles
        return work

    def bytes(self) -> int:
        """Read once: hidden states, and the keys if the method looks at them; read and written: what is left of the
        hidden states."""
        hidden, keys = self.inputs[0]
        left = len(self.once()[0]) * hidden.shape[0] * hidden.shape[-1]
        looked = keys.numel() if self.config.strategy == "dart" else 0
        return (hidden.numel() + looked + 2 * left) * hidden.element_size()


def graph(work: Callable[[], object]) -> Callable[[], object]:
    """The same as one CUDA graph."""
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        work()
    return recorded.replay


@contextmanager
def _mode(mode: str) -> Iterator[None]:
    """DART_KERNELS for a while."""
    before = os.environ.get(kernels.VARIABLE)
    os.environ[kernels.VARIABLE] = mode
    try:
        yield
    finally:
        os.environ.pop(kernels.VARIABLE)
        if before is not None:
            os.environ[kernels.VARIABLE] = before


@torch.inference_mode()
def measure(
    strategy: str, name: str, batch: int, device: torch.device, dtype: str, repeats: int, rate: float
) -> dict[str, Any]:
    case = Case(strategy, SHAPES[name], batch, device, getattr(torch, dtype))
    row: dict[str, Any] = {"strategy": strategy, "shape": name, "batch": batch, "dtype": dtype}

    def us(function: Callable[[], object]) -> float:
        return round(1e6 * seconds_of(function, device, repeats) / SETS, 1)

    with _mode("torch"):
        wanted = case.once()
        row["torch_us"] = us(case.all)
    with _mode("triton"):
        row["same_tokens"] = round((case.once() == wanted).double().mean().item(), 4)
        row["kernels_us"] = us(case.all)
        work = case.planned()
        row["graph_us"] = us(graph(work)) if device.type == "cuda" else None
    row["floor_us"] = round(1e6 * case.bytes() / rate, 1)
    return row


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", type=list_of(str), default=list(STRATEGIES))
    parser.add_argument("--shapes", type=list_of(str), default=["llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b"])
    parser.add_argument("--batch-sizes", type=list_of(positive), default=[1, 8])
    parser.add_argument("--dtypes", type=list_of(str), default=["bfloat16"])
    parser.add_argument("--device", help="default: CUDA; on a CPU Triton's interpreter runs, which no time is worth")
    parser.add_argument("--repeats", type=positive, default=31)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    check_known("--strategies", args.strategies, STRATEGIES)
    check_known("--shapes", args.shapes, SHAPES)
    check_known("--dtypes", args.dtypes, DTYPES)
    device = device_of(args.device)
    with _mode("triton"):
        kernels.active(device, "triton")
    rate = copy_rate(device)
    rows = [
        measure(strategy, name, batch, device, dtype, args.repeats, rate)
        for dtype in args.dtypes
        for strategy in args.strategies
        for name in args.shapes
        for batch in args.batch_sizes
    ]
    print_table(rows)
    publish({**provenance(), "copy_gb_s": round(rate / 1e9, 1), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
