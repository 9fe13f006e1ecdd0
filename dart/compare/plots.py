"""Accuracy over what it costs: true mean tokens, and measured prefill time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dart.compare.plan import BLIND, UNPRUNED
from dart.compare.tables import Results, axis_points
from dart.utils import needed, replacing

# Okabe and Ito's colours, which the colour-blind tell apart; a method has a colour and a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#777777"
AXES = (("mean_tokens", "visual tokens, mean over layers"), ("prefill_ms", "vision tower + prefill, ms (median)"))
INCHES, DOTS_PER_INCH = (13.0, 4.4), 110


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those points (cost, score) than which no cheaper or equally cheap one is better, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """method -> (colour, marker)."""
    return {
        name: (COLOURS[k % len(COLOURS)], MARKERS[(k + k // len(COLOURS)) % len(MARKERS)])
        for k, name in enumerate(methods)
    }


def draw(path: Path, results: Results) -> None:
    """A PNG with a row for each data set (and one for the average of several) and a column for each axis.

    Raises UserError without matplotlib.
    """
    names: list[str | None] = [data["name"] for data in results["data"]]
    rows = names if len(names) == 1 else [None, *names]
    figure = needed("matplotlib.figure", "plot").Figure((INCHES[0], INCHES[1] * len(rows)), DOTS_PER_INCH)
    all_axes = figure.subplots(len(rows), len(AXES), squeeze=False)
    for name, pair in zip(rows, all_axes, strict=True):
        for axes, (x, title) in zip(pair, AXES, strict=True):
            _panel(axes, results, name, x)
            axes.set(xlabel=title, ylabel="accuracy, %", title=title_of(name, names))
            axes.grid(alpha=0.3)
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def title_of(name: str | None, names: Sequence[Any]) -> str:
    """A panel's title; a dollar sign in it begins no formula."""
    return (name or f"mean of {', '.join(map(str, names))}").replace("$", r"\$")


def _panel(axes: Any, results: Results, data: str | None, x: str) -> None:
    points = axis_points(results, data, x)
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        by_method.setdefault(point["method"], []).append(point)
    for name, (colour, marker) in styles(list(results["methods"])[2:]).items():
        own = sorted((point[x], 100 * point["score"]) for point in by_method.get(name, []))
        if own:
            axes.plot(*zip(*own, strict=True), color=colour, marker=marker, markersize=5, linewidth=1, label=name)
    for point in by_method.get(UNPRUNED, []):
        axes.axhline(100 * point["score"], color=GREY, linestyle="--", linewidth=1, label=UNPRUNED)
    for point in by_method.get(BLIND, []):
        blind = 100 * point["score"]
        if blind >= axes.get_ylim()[0]:
            axes.axhline(blind, color=GREY, linestyle=":", linewidth=1)
        else:  # it would flatten what the figure is about
            axes.text(0.99, 0.02, f"{BLIND}: {blind:.1f}", transform=axes.transAxes, ha="right", color=GREY)
    pruned = [(point[x], 100 * point["score"]) for point in points if point["budget"] is not None]
    if pruned:
        axes.step(*zip(*front(pruned), strict=True), where="post", color=GREY, linewidth=5, alpha=0.25, label="front")
