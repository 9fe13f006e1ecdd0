"""Line charts as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dart.utils import needed

INCHES, DOTS_PER_INCH = (9, 6), 150


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in the order in which they are joined. dashed: for a limit, not a measurement."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def check_chart(path: str | None) -> None:
    """Before anything is measured: raises ValueError for a name that is no PNG file's, UserError without matplotlib."""
    if path is None:
        return
    if not path.endswith(".png"):
        raise ValueError(f"--plot must name a .png file, got {path}")
    needed("matplotlib", "plot")


def line_chart(path: Path, title: str, x_name: str, y_name: str, curves: Sequence[Curve]) -> None:
    """Write the chart; both axes begin at 0. Raises UserError without matplotlib."""
    figure = needed("matplotlib.figure", "plot").Figure(INCHES, DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(*zip(*curve.points, strict=True), "--" if curve.dashed else "o-", label=curve.name)
    axes.set(title=title, xlabel=x_name, ylabel=y_name, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
