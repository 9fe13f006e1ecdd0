"""Compiles the kernels for a GPU without having one: `python tests/kernel_builds.py` prints JSON, a line a kernel.

The arguments are recorded from launches with CPU tensors. In a process of its own: the interpreter must be off.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import triton
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import dart
from dart.kernels import launch
from dart.selection import plan_batch

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages")
ALIGNED = 16
TOKENS, VISUAL, START, WIDTH, HEADS, HEAD = 2950, 2880, 35, 4096, 32, 128


class Recorder:
    """Stands in for a kernel: `kernel[grid](...)` keeps the arguments."""

    def __init__(self, kernel: Any, seen: list[tuple[Any, tuple, dict]]):
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: tuple) -> Any:
        return lambda *args, **kwargs: self.seen.append((self.kernel, args, kwargs))


def compiled(kernel: Any, args: tuple, kwargs: dict) -> Any:
    if "INTERPRETED" in kwargs:
        kwargs["INTERPRETED"] = False
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
    constants = {name: value for name, value in bound.items() if name.isupper()}
    signature, attributes = {}, {}
    for place, (name, value) in enumerate(bound.items()):
        signature[name] = "constexpr" if name.isupper() else kind(value)
        # What Triton's launcher finds out by itself: aligned pointers and multiples of 16.
        if not name.isupper() and (
            isinstance(value, torch.Tensor) or (isinstance(value, int) and value % ALIGNED == 0)
        ):
            attributes[(place,)] = [["tt.divisibility", ALIGNED]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=HOPPER, options=options)


def kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def record(dtype: torch.dtype) -> list[tuple[Any, tuple, dict]]:
    """The launches of a LLaVA-NeXT-7B prefill, 2880 -> 324."""
    seen: list[tuple[Any, tuple, dict]] = []
    plain = launch.kernels
    launch.kernels = type(
        "Recorders", (), {n: Recorder(k, seen) for n, k in vars(plain).items() if n.endswith("_kernel")}
    )
    try:
        spans = np.zeros((1, TOKENS), dtype=np.int64)
        spans[:, START : START + VISUAL] = 1
        hidden, keys = torch.zeros(1, TOKENS, WIDTH, dtype=dtype), torch.zeros(1, HEADS, TOKENS, HEAD, dtype=dtype)
        norm = LlamaRMSNorm(WIDTH).to(dtype)
        batch = plan_batch(hidden, norm, keys, spans, None, dart.DartConfig(keep=320))
        rows = launch.Selection.of(batch).run(hidden, norm, keys)
        angles = torch.zeros(1, TOKENS, HEAD, dtype=dtype)
        launch.gather(rows, hidden, (angles, angles), torch.zeros(1, TOKENS, dtype=torch.long))
    finally:
        launch.kernels = plain
    return seen


def facts(built: Any) -> dict[str, int]:
    """Registers of a thread, bytes of memory a thread spills to, bytes of shared memory, and some instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    ptx = built.asm["ptx"]
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "local_bytes": int(re.findall(r"LOCAL:(\d+)", usage)[-1]),
        "shared": built.metadata.shared,
        "barriers": ptx.count("bar.sync"),
        "tensor_core_products": ptx.count("mma.sync"),
    }


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    for kernel, args, kwargs in record(dtype):
        built = compiled(kernel, args, kwargs)
        print(json.dumps({"kernel": kernel.fn.__name__, "warps": built.metadata.num_warps, **facts(built)}))


if __name__ == "__main__":
    main()
