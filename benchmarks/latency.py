"""Where the time of an answer goes, with and without pruning: `python -m benchmarks.latency --model llava-next-7b`.

Models by shape with random weights, or a checkpoint. Every round runs all settings of a prompt in turns; medians and
interquartile ranges. Beside them the ceilings: the share of operations that is left, and an oracle that is given the
same kept tokens for free. Prints tables, and one JSON line last.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import checkpoints, flops
from benchmarks.arguments import budget, check_known, list_of, positive
from benchmarks.ceilings import copy_rate, matmul_rate
from benchmarks.engines import ENGINES, Engine
from benchmarks.latency_report import draw, limits_text, to_text
from benchmarks.measure import Plan, measure, settings_for
from benchmarks.output import publish
from benchmarks.plot import check_chart
from benchmarks.shapes import SHAPES, Shape, Workload, build, workload
from dart import strategies
from dart.engine.compiled import compile_layers
from dart.utils import DTYPES, Parser, add_revision, checkpoint_folder, device_of, exits_cleanly, provenance

ATTENTION = ("sdpa", "eager", "flash_attention_2")


def _engines() -> str:
    return "how tokens are decoded: " + "; ".join(f"{name}: {what}" for name, what in ENGINES.items())


def parser_() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", choices=SHAPES, default="tiny", help="a shape, with random weights")
    which.add_argument("--checkpoint", help="folder or hub name: an original LLaVA, or transformers' LLaVA, Qwen-VL")
    add_revision(parser)
    parser.add_argument("--strategies", type=list_of(str), default=["dart"], help="such as dart,random,uniform")
    parser.add_argument("--keep", type=list_of(budget), help="budgets, such as 640,320 or 0.222; default: the shape's")
    parser.add_argument("--layer", type=positive, default=2, help="K: tokens are dropped before this layer")
    parser.add_argument("--batch-sizes", type=list_of(positive), default=[1])
    parser.add_argument("--attn", type=list_of(str), default=["sdpa"], help=", ".join(ATTENTION))
    parser.add_argument("--dtype", type=list_of(str), help=f"{', '.join(DTYPES)}; default: float32, on CUDA bfloat16")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--images", type=positive, help="images (views) in a prompt; default: the shape's")
    parser.add_argument("--layers", type=positive, help="fewer decoder layers, where memory is short")
    parser.add_argument("--engine", choices=ENGINES, default="eager", help=_engines())
    parser.add_argument("--compile-layers", action="store_true", help="torch.compile for the layers of the prefill")
    parser.add_argument("--answer-tokens", type=positive, default=16)
    parser.add_argument("--repeats", type=positive, default=9)
    parser.add_argument("--warm-up", type=positive, default=2)
    parser.add_argument("--threads", type=positive, help="of the CPU; default: torch's")
    parser.add_argument("--out", help="such as docs/results/latency-cpu.json")
    parser.add_argument("--plot", help="a PNG file: speed-up over tokens kept")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for what can be refused before a model is made."""
    if args.revision and not args.checkpoint:
        raise ValueError("--revision is for a --checkpoint of the hub; shapes have random weights")
    for name, values, known in (
        ("--strategies", args.strategies, strategies.available()),
        ("--attn", args.attn, ATTENTION),
        ("--dtype", args.dtype, DTYPES),
    ):
        check_known(name, values, known)
    if args.compile_layers and args.engine != "eager":
        raise ValueError(
            f"--compile-layers goes with --engine eager, got {args.engine}: a static cache starts uncompiled"
        )
    check_chart(args.plot)


def _shape(args: argparse.Namespace) -> Shape | None:
    if args.checkpoint:
        if args.layers:
            raise ValueError("--layers is for shapes; a checkpoint has the layers that it has")
        return None
    shape = SHAPES[args.model]
    if args.layers and not args.layer < args.layers <= shape.layers:
        raise ValueError(f"--layers must be between {args.layer + 1} and {shape.layers}, got {args.layers}")
    return replace(shape, layers=args.layers or shape.layers, images=args.images or shape.images)


def _prompts(args: argparse.Namespace, shape: Shape | None, model: Any) -> list[Workload]:
    if shape is None:
        return [checkpoints.prompt(model, batch, args.images) for batch in args.batch_sizes]
    return [workload(shape, model, batch) for batch in args.batch_sizes]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the arguments ask for. Raises ValueError for bad ones."""
    args.device = device_of(args.device)
    args.dtype = args.dtype or ["bfloat16" if args.device.type == "cuda" else "float32"]
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    shape = _shape(args)
    keeps = args.keep or list((shape or SHAPES["llava-1.5-7b"]).keep)
    settings = settings_for(args.strategies, keeps, args.layer)
    rows: list[dict[str, Any]] = []
    decoder: flops.Decoder | None = None
    rates = {"copy_gb_s": round(copy_rate(args.device) / 1e9, 1)}
    for dtype in args.dtype:
        rates[f"matmul_{dtype}_tflop_s"] = round(matmul_rate(args.device, getattr(torch, dtype)) / 1e12, 3)
        for attention in args.attn:
            made = _model(args, shape, dtype, attention)
            decoder = flops.Decoder.of(made.config.get_text_config(decoder=True))
            if args.layer >= decoder.layers:
                raise ValueError(f"--layer must be below the model's {decoder.layers} layers, got {args.layer}")
            plan = Plan(args.layer, args.answer_tokens, args.repeats, args.warm_up, Engine.of(args.engine, made))
            if args.compile_layers:
                compile_layers(made)
            for work in _prompts(args, shape, made):
                new = measure(work, settings, plan)
                rows += [{"dtype": dtype, "attn": attention, **row} for row in new]
                print(to_text(rows[-len(new) :]), flush=True)
            del made, work
            gc.collect()
    return {
        **provenance(),
        "model": args.checkpoint or args.model,
        "revision": args.revision,
        "weights": "the checkpoint's" if args.checkpoint else "random",
        "note": shape.note if shape is not None else "",
        "decoder": asdict(decoder) if decoder is not None else {},
        "layer": args.layer,
        "answer_tokens": args.answer_tokens,
        "engine": args.engine,
        "compiled_layers": args.compile_layers,
        "repeats": args.repeats,
        "rates": rates,
        "rows": rows,
    }


def _model(args: argparse.Namespace, shape: Shape | None, dtype: str, attention: str) -> Any:
    kind = getattr(torch, dtype)
    if shape is None:
        return checkpoints.load(checkpoint_folder(args.checkpoint, args.revision), args.device, kind, attention)
    return build(shape, args.device, kind, attention)


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parser_().parse_args(argv)
    result = run(args)
    print(limits_text(result))
    if args.plot:
        draw(Path(args.plot), result)
    publish(result, args.out)


if __name__ == "__main__":
    main()
