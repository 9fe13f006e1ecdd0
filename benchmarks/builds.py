"""Compiles the kernels for a Hopper GPU without having one: `python -m benchmarks.builds [--out FILE]`; JSON last line.

Triton brings NVIDIA's assembler. The arguments are those of a LLaVA-NeXT-7B prefill, 2880 -> 324 tokens, recorded from
launches with CPU tensors. Prints registers and spilled bytes per thread, shared memory, barriers, and how many
instructions multiply on the tensor cores.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import tempfile
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import dart
from benchmarks.arguments import check_known, list_of
from benchmarks.output import print_table, publish
from dart import kernels, strategies
from dart.engine.layers import gather_inputs
from dart.engine.selection import plan_batch
from dart.utils import DTYPES, Parser, exits_cleanly, provenance

CAPABILITY, WARP = 90, 32  # of an H100 or H200
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
STRATEGIES = ("dart", "spread")  # that have kernels
OPTIONS = ("num_warps", "num_stages")
ALIGNED = 16  # bytes, or elements: what Triton's launcher finds out by itself
TOKENS, VISUAL, START, WIDTH, HEADS, HEAD, KEEP = 2950, 2880, 35, 4096, 32, 128, 320
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


def record(dtype: torch.dtype) -> list[Launch]:
    """The launches of both selections and the gathering behind them, of each variant of a kernel the first; nothing is
    run."""
    from triton.runtime.jit import JITFunction

    from dart.kernels import launch, spread  # noqa: F401  compiled functions, whatever the variable below says

    spans = np.zeros((1, TOKENS), dtype=np.int64)
    spans[:, START : START + VISUAL] = 1
    hidden, keys = torch.zeros(1, TOKENS, WIDTH, dtype=dtype), torch.zeros(1, HEADS, TOKENS, HEAD, dtype=dtype)
    angles, places = torch.zeros(1, TOKENS, HEAD, dtype=dtype), torch.zeros(1, TOKENS, dtype=torch.long)
    norm = LlamaRMSNorm(WIDTH).to(dtype)
    variants: dict[Any, Launch] = {}

    def keep(kernel: Any, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: variants.setdefault(
            (kernel.fn.__name__, *sorted(kwargs.items())), (kernel, args, kwargs)
        )

    modes = {kernels.VARIABLE: "triton", kernels.INTERPRETER: "1"}  # so that CPU tensors are no mistake
    with mock.patch.dict(os.environ, modes), mock.patch.object(JITFunction, "__getitem__", keep):
        for strategy in STRATEGIES:
            config = dart.DartConfig(keep=KEEP, strategy=strategy)
            batch = plan_batch(hidden, norm, keys, spans, None, config)
            rows = strategies.get(strategy).reduce_batch(batch, config)
            assert rows is not None
            gather_inputs(rows, hidden, (angles, angles), places, "triton")
    return list(variants.values())


def compiled(launched: Launch) -> Any:
    """Triton's compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, args, kwargs = launched
    options = {name: kwargs[name] for name in OPTIONS if name in kwargs}
    bound = inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in kwargs.items() if k not in options}).arguments
    constants = {name: value for name, value in bound.items() if name.isupper()}
    if "INTERPRETED" in constants:
        constants["INTERPRETED"] = False
    signature, attributes = {}, {}
    for place, (name, value) in enumerate(bound.items()):
        signature[name] = "constexpr" if name in constants else _kind(value)
        known = isinstance(value, torch.Tensor) or (type(value) is int and value % ALIGNED == 0)
        param = kernel.params[place]
        fixed = param.do_not_specialize or param.do_not_specialize_on_alignment
        if known and name not in constants and not fixed:
            attributes[(place,)] = [["tt.divisibility", ALIGNED]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", CAPABILITY, WARP), options=options)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def facts(built: Any) -> dict[str, int]:
    """What the assembler made of it."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = built.asm["ptx"]
    return {
        "warps": built.metadata.num_warps,
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "spilled_bytes": int(re.findall(r"LOCAL:(\d+)", usage)[-1]),
        "shared_bytes": built.metadata.shared,
        "barriers": ptx.count("bar.sync"),
        "tensor_core_products": ptx.count("mma.sync"),
    }


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", type=list_of(str), default=list(DTYPES))
    parser.add_argument("--out", help="such as docs/results/kernel-builds-hopper.json")
    args = parser.parse_args(argv)
    check_known("--dtypes", args.dtypes, DTYPES)
    if os.environ.get(kernels.INTERPRETER) == "1" or not kernels.installed():
        raise ValueError(f"this needs triton (pip install triton), and {kernels.INTERPRETER} unset")
    rows = []
    for dtype in args.dtypes:
        for launched in record(getattr(torch, dtype)):
            name = launched[0].fn.__name__.removesuffix("_kernel")
            rows.append({"kernel": name, "dtype": dtype, **facts(compiled(launched))})
    print_table(rows)
    publish({**provenance(), "target": f"sm_{CAPABILITY}", "rows": rows}, args.out)


if __name__ == "__main__":
    main()
