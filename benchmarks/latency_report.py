"""A latency run as text and as a chart."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.plot import Curve, line_chart

MEGA = 1e6
HEADS = [
    "setting", "visual", "vision", "before K", "select", "after K", "prefill", "first token", "a token", "total",
    "prefill x", "limit x", "total x", "of oracle", "KV MB", "peak MB",
]  # fmt: skip


def _ms(row: dict[str, Any], name: str) -> str:
    value = row["ms"][name]
    return f"{value['median']:.2f} ±{value['iqr'] / 2:.2f}"


def cells(row: dict[str, Any]) -> list[str]:
    """A row under HEADS. Times are milliseconds, median ± half the interquartile range."""
    of_oracle = f"{row['of_oracle']['median']:.3f}" if "of_oracle" in row else ""
    return [
        row["setting"],
        str(row["visual_after"]),
        *(_ms(row, name) for name in ("vision", "before", "selection", "after", "prefill", "ttft", "decode", "total")),
        f"{row['times_faster']['prefill']['median']:.2f}",
        f"{row['flops_limit']:.2f}",
        f"{row['times_faster']['total']['median']:.2f}",
        of_oracle,
        f"{row['kv_bytes'] / MEGA:.1f}",
        f"{row['peak_bytes'] / MEGA:.1f}",
    ]


def groups(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows that share dtype, attention and batch size, with a title."""
    grouped = groupby(rows, key=lambda row: f"{row['dtype']}, {row['attn']}, batch {row['batch']}")
    return [(title, list(members)) for title, members in grouped]


def to_text(rows: list[dict[str, Any]]) -> str:
    """Aligned columns, one table for each group."""
    lines = []
    for title, members in groups(rows):
        table = [HEADS, *(cells(row) for row in members)]
        widths = [max(len(line[k]) for line in table) for k in range(len(HEADS))]
        lines += ["", f"{title}, {members[0]['tokens']} tokens, milliseconds (median ± half the interquartile range)"]
        lines += ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join(lines)


def limits_text(result: dict[str, Any]) -> str:
    """What pruning from layer K on can give, by formula."""
    layer, layers = result["layer"], result["decoder"]["layers"]
    budgets = {row["visual_after"]: row for row in result["rows"] if row["visual_after"] < row["visual_before"]}
    lines = [f"\nThe first {layer} of {layers} layers keep all visual tokens. Left of the unpruned model, by formula:"]
    for after, row in budgets.items():
        everywhere = after / row["visual_before"]
        lines += [
            f"  {row['visual_before']} -> {after} visual tokens",
            f"    KV cache of the visual tokens: {_percent(row['visual_kv_share'])}; "
            f"{_percent(everywhere)} if every layer kept {after}, as published figures assume",
            f"    FLOPs of the visual tokens, as papers count them: {_percent(row['flops_share_as_published'])}",
            f"    FLOPs of the whole prefill, words and logits included: {_percent(1 / row['flops_limit'])}",
        ]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def draw(path: Path, result: dict[str, Any]) -> None:
    """Speed-up of the prefill over the visual tokens kept, for each strategy, dtype, attention and batch size."""
    curves = []
    many = len(groups(result["rows"])) > 1
    for title, members in groups(result["rows"]):
        base = members[0]
        start = (float(base["visual_before"]), 1.0)
        names = dict.fromkeys(row["setting"].rsplit(" ", 1)[0] for row in members[1:])
        for name in names:
            own = sorted(
                (row for row in members[1:] if row["setting"].rsplit(" ", 1)[0] == name),
                key=lambda row: row["visual_after"],
            )
            points = [(float(row["visual_after"]), row["times_faster"]["prefill"]["median"]) for row in own]
            curves.append(Curve(f"{name}, {title}" if many else name, [*points, start]))
        limit = sorted({(float(row["visual_after"]), row["flops_limit"]) for row in members})
        if all(curve.points != limit for curve in curves):  # the same for every dtype, attention and batch size
            curves.append(Curve("limit by FLOPs", limit, dashed=True))
    line_chart(path, f"{result['model']}: prefill", "visual tokens kept", "times faster than unpruned", curves)
