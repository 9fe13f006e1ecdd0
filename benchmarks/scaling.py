"""Selection over up to 100,000 visual tokens (videos, many images): `python -m benchmarks.scaling`.

Time and peak memory of what the pruner does in front of layer K (the final norm, and the selection) at the width of
Qwen2.5-VL-7B, in one pool and in spans of 1,024 tokens; a straight line is fitted to the times. JSON last line.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import dart
from benchmarks.arguments import budget, list_of, positive
from benchmarks.ceilings import seconds_of
from benchmarks.output import publish
from benchmarks.phases import peak_bytes
from benchmarks.plot import Curve, check_chart, line_chart
from dart.engine.selection import select_rows
from dart.utils import DTYPES, Parser, device_of, exits_cleanly, provenance

WIDTH, KV_HEADS, HEAD_DIM = 3584, 4, 128
TEXT, SPAN = 35, 1024
TOKENS = (1000, 2880, 5000, 10000, 20000, 40000, 60000, 80000, 100000)
SCOPES = {"joint": "one pool", "span": f"spans of {SPAN}"}


def inputs(visual: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Random hidden states [1, S, D], keys [H, S, h] and span numbers [S] of a prompt with `visual` visual tokens."""
    length = visual + 2 * TEXT
    generator = torch.Generator(device).manual_seed(0)
    made: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
    hidden, keys = torch.randn(1, length, WIDTH, **made), torch.randn(KV_HEADS, length, HEAD_DIM, **made)
    spans = np.zeros(length, dtype=np.int64)
    spans[TEXT : TEXT + visual] = np.arange(visual) // SPAN + 1
    return hidden, keys, spans


def measure(visual: int, scope: str, keep: float, device: torch.device, dtype: torch.dtype, repeats: int) -> dict:
    """Milliseconds, and bytes beyond those of the operands."""
    hidden, keys, spans = inputs(visual, device, dtype)
    norm = LlamaRMSNorm(WIDTH).to(device, dtype)
    config = dart.DartConfig(keep=keep, scope=scope)

    @torch.inference_mode()
    def work() -> list[int]:
        left = select_rows(hidden, norm, keys[None], spans[None], None, config)
        return [] if left is None else left.widths

    return {
        "scope": scope,
        "visual": visual,
        "kept": sum(work()) - 2 * TEXT,
        "ms": round(1000 * seconds_of(work, device, repeats), 3),
        "peak_bytes": peak_bytes(work, device),
        "operand_bytes": sum(each.numel() * each.element_size() for each in (hidden, keys)),
    }


def line_through(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Least squares ms = offset + slope * visual, the slope in microseconds per token, and R^2."""
    x, y = [float(row["visual"]) for row in rows], [float(row["ms"]) for row in rows]
    slope, offset = statistics.linear_regression(x, y)
    return {
        "us_a_token": round(1000 * slope, 4),
        "offset_ms": round(offset, 3),
        "r2": round(statistics.correlation(x, y) ** 2, 4),
    }


def parser_() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=list_of(positive), default=list(TOKENS), help="two numbers or more, with commas"
    )
    parser.add_argument("--keep", type=budget, default=0.111, help="the share to keep")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--out")
    parser.add_argument("--plot", help="a PNG file: time over visual tokens")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError for arguments that make no line."""
    tokens, device = args.tokens, device_of(args.device)
    if len(set(tokens)) < 2 or min(tokens) < SPAN // 8:
        raise ValueError(f"--tokens needs two or more different numbers from {SPAN // 8} on, got {tokens}")
    one = partial(measure, keep=args.keep, device=device, dtype=getattr(torch, args.dtype), repeats=args.repeats)
    check_chart(args.plot)
    rows = []
    for scope in SCOPES:
        for visual in tokens:
            rows.append(one(visual, scope))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    lines = {scope: line_through([row for row in rows if row["scope"] == scope]) for scope in SCOPES}
    shape = {"width": WIDTH, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "dtype": args.dtype, "keep": args.keep}
    return {**provenance(), "shape": shape, "rows": rows, "lines": lines}


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parser_().parse_args(argv)
    result = run(args)
    if args.plot:
        curves = [
            Curve(name, [(row["visual"], row["ms"]) for row in result["rows"] if row["scope"] == scope])
            for scope, name in SCOPES.items()
        ]
        line_chart(Path(args.plot), "selection, Qwen2.5-VL-7B width", "visual tokens", "milliseconds", curves)
    publish(result, args.out)


if __name__ == "__main__":
    main()
