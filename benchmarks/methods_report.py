"""Every method's prefill as text and as a chart: accuracy over speed-up."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from dart.compare.plots import GREY, front, styles
from dart.utils import needed, replacing

INCHES, DOTS_PER_INCH = (7.0, 5.2), 110
LEGEND = 1.9  # inches
HEADS = ["method", "accuracy, %", "tokens", "selector ms", "vision ms", "prefill ms", "times faster"]


def unpruned_ms(part: dict[str, Any], phase: str) -> float:
    """The median over all rounds of one shape, so that a slow one does not lift the methods beside it."""
    return statistics.median(row["unpruned_ms"][phase]["median"] for row in part["rows"] if "error" not in row)


def times_faster(part: dict[str, Any], row: dict[str, Any]) -> float:
    """Prefill with the vision tower, unpruned over pruned."""
    return unpruned_ms(part, "ttft") / row["ms"]["ttft"]["median"]


def cells(row: dict[str, Any], speed: float, relative: dict[str, float]) -> list[str]:
    """A measured row under HEADS. Times are medians; relative: method -> accuracy."""
    accuracy = relative.get(row["method"])
    return [
        row["method"],
        "" if accuracy is None else f"{accuracy:.1f}",
        f"{row['mean_tokens']:.1f}",
        f"{row['ms']['selector']['median']:.1f}",
        f"{row['ms']['vision']['median']:.0f}",
        f"{row['ms']['ttft']['median']:.0f}",
        f"{speed:.2f}",
    ]


def table(part: dict[str, Any], accuracy: dict[str, Any]) -> list[list[str]]:
    """One shape's rows under HEADS, the fastest first, after a row of the unpruned model."""
    measured = [row for row in part["rows"] if "error" not in row]
    measured.sort(key=lambda row: row["ms"]["ttft"]["median"])
    if not measured:
        return []
    phases = {phase: {"median": unpruned_ms(part, phase)} for phase in ("vision", "ttft")}
    base: dict[str, Any] = {
        "method": "unpruned",
        "mean_tokens": part["visual_tokens"],
        "ms": {"selector": {"median": 0.0}, **phases},
    }
    relative = {**accuracy["relative"], "unpruned": 100.0}
    return [cells(row, times_faster(part, row), relative) for row in (base, *measured)]


def refused(part: dict[str, Any]) -> list[str]:
    """Which methods were not measured, and why."""
    return [f"{row['method']}: {row['error']}" for row in part["rows"] if "error" in row]


def title_of(name: str, part: dict[str, Any]) -> str:
    """What the rows of one shape have in common."""
    return (
        f"{name}, {part['layers']} layers, {part['dtype']}, {part['attn']}: {part['keep']} of {part['visual_tokens']} "
        f"visual tokens as a mean over the layers, {part['tokens']} tokens in all"
    )


def to_text(result: dict[str, Any]) -> str:
    """Aligned columns, one table for each shape."""
    lines = []
    for name, part in result["shapes"].items():
        rows = [HEADS, *table(part, result["accuracy"])]
        widths = [max(len(line[k]) for line in rows) for k in range(len(HEADS))]
        lines += ["", title_of(name, part)]
        lines += ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in rows]
        lines += [f"not measured: {reason}" for reason in refused(part)]
    return "\n".join(lines)


def draw(path: Path, result: dict[str, Any]) -> None:
    """A PNG with a panel for each shape. Raises UserError without matplotlib."""
    shapes, accuracy = result["shapes"], result["accuracy"]
    size = (INCHES[0] * len(shapes) + LEGEND, INCHES[1])
    figure = needed("matplotlib.figure", "plot").Figure(size, DOTS_PER_INCH)
    panels = figure.subplots(1, len(shapes), squeeze=False)[0]
    names = sorted({row["method"] for part in shapes.values() for row in part["rows"]} & set(accuracy["relative"]))
    looks = styles(names)
    share = f"{100 * accuracy['share']:.0f} %"
    for axes, (name, part) in zip(panels, shapes.items(), strict=True):
        measured = {row["method"]: times_faster(part, row) for row in part["rows"] if "error" not in row}
        points = {each: (measured[each], accuracy["relative"][each]) for each in names if each in measured}
        best = front([(-speed, score) for speed, score in points.values()])  # the faster, the cheaper
        axes.step(*np.reshape(best, (-1, 2)).T * [[-1], [1]], where="post", color=GREY, linewidth=5, alpha=0.25)
        for each, point in points.items():
            colour, marker = looks[each]
            axes.plot(*point, color=colour, marker=marker, linestyle="", label=each)
        axes.axhline(100, color=GREY, linestyle="--", linewidth=1)
        axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
        axes.set(
            title=f"shape of {name}: {part['keep']} of {part['visual_tokens']} tokens",
            xlabel="prefill with vision tower, times faster than unpruned",
            ylabel=f"accuracy of {accuracy['model']} with {share} of the tokens, % of unpruned",
        )
        axes.grid(alpha=0.3)
    handles = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="center right", fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - LEGEND / size[0], 1))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
