"""Time of `dart.select` beside a naive loop: `python -m benchmarks.selection [--out FILE]`; JSON last line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

import dart
from benchmarks.arguments import check_known, list_of, positive
from benchmarks.ceilings import seconds_of
from benchmarks.output import print_table, publish
from dart.config import PIVOT_ORDERS
from dart.utils import DTYPES, Parser, exits_cleanly, provenance

SHAPES = {"llava-7b": (620, 576), "next-7b": (2900, 2880)}
START, WIDTH, HEADS, HEAD_DIM, KEEP = 15, 4096, 32, 128, 128
CPU = torch.device("cpu")


def naive(hidden: torch.Tensor, keys: torch.Tensor, visual: list[int], text: list[int], take: int) -> list[int]:
    """One pivot at a time, one token at a time on the host, as research code is written."""
    norms = keys.transpose(0, 1).flatten(1).norm(p=1, dim=-1)
    pivots = sorted(visual, key=lambda p: -float(norms[p]))[:4]
    texts = sorted(text, key=lambda p: -float(norms[p]))[:4]
    kept, left = list(pivots), [p for p in visual if p not in set(pivots)]
    for pivot in pivots + texts:
        similarity = torch.nn.functional.cosine_similarity(hidden[pivot][None], hidden[left], dim=-1)
        picked = {left[int(i)] for i in similarity.topk(take, largest=False).indices}
        kept += picked
        left = [p for p in left if p not in picked]
    return sorted(kept)


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second of reading one large float32 tensor (the floor's unit)."""
    tensor = torch.ones(2900 * WIDTH)
    return tensor.numel() * tensor.element_size() / seconds_of(tensor.sum, CPU, repeats)


def measure(
    shape: str, dtype: torch.dtype, repeats: int, bandwidth: float, strategies: Sequence[str] = ()
) -> dict[str, object]:
    """strategies: others to time beside DART."""
    tokens, visual = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).to(dtype)
    keys = torch.randn(HEADS, tokens, HEAD_DIM, generator=generator).to(dtype)
    mask = torch.zeros(tokens, dtype=torch.bool)
    mask[START : START + visual] = True
    row: dict[str, object] = {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
    configs = {order: dart.DartConfig(keep=KEEP, pivot_order=order) for order in PIVOT_ORDERS}
    configs |= {name: dart.DartConfig(keep=KEEP, strategy=name) for name in strategies}
    for name, config in configs.items():
        row[f"{name}_ms"] = round(1000 * seconds_of(partial(dart.select, hidden, keys, mask, config), CPU, repeats), 3)
    positions = list(range(START, START + visual))
    text = list(range(START + visual, tokens))
    take = KEEP // 8
    loop = partial(naive, hidden, keys, positions, text, take)
    row["naive_ms"] = round(1000 * seconds_of(loop, CPU, max(3, repeats // 3)), 3)
    row["floor_ms"] = round(1000 * 2 * hidden.numel() * hidden.element_size() / bandwidth, 3)
    row["times_faster"] = round(float(str(row["naive_ms"])) / float(str(row["norm_ms"])), 1)
    return row


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--shapes", type=list_of(str), default=list(SHAPES))
    parser.add_argument("--dtypes", type=list_of(str), default=["float32", "bfloat16"])
    parser.add_argument("--strategies", type=list_of(str), default=[], help="also time these, such as spread")
    parser.add_argument("--repeats", type=positive, default=15)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    check_known("--shapes", args.shapes, SHAPES)
    check_known("--dtypes", args.dtypes, DTYPES)
    for name in args.strategies:
        dart.strategies.get(name)
    bandwidth = copy_bandwidth(args.repeats)
    dtypes = [getattr(torch, name) for name in args.dtypes]
    rows = [
        measure(shape, dtype, args.repeats, bandwidth, args.strategies) for shape in args.shapes for dtype in dtypes
    ]
    print_table(rows)
    publish({**provenance(), "read_bandwidth_gb_s": round(bandwidth / 1e9, 1), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
