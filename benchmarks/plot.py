"""Line charts as PNG files, drawn with Pillow (no plotting library is needed)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = (1400, 900)
LEFT, RIGHT, TOP, BOTTOM = 140, 40, 90, 110
COLOURS = ("#1f5fbf", "#c4452d", "#2c8a4b", "#8a4fb5", "#b8860b", "#4a4a4a")
INK, GRID = "#222222", "#dddddd"
FONT, MARKER, TICKS, LEGEND_STEP = 22, 6, 6, 32


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in the order in which they are joined. dashed: for a limit, not a measurement."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def ticks(highest: float, count: int = TICKS) -> list[float]:
    """Round numbers from 0 up to at least `highest`, about `count` of them."""
    rough = highest / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough)
    return [step * k for k in range(math.ceil(highest / step - 1e-9) + 1)]


def line_chart(path: Path, title: str, x_name: str, y_name: str, curves: Sequence[Curve]) -> None:
    """Write the chart; both axes begin at 0. Raises ValueError without points."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        raise ValueError(f"nothing to draw in {path}: there are no points")
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    x_ticks, y_ticks = ticks(max(x for x, _ in points)), ticks(max(y for _, y in points))
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * x / x_ticks[-1], TOP + height * (1 - y / y_ticks[-1])

    for x in x_ticks:
        draw.line([place(x, 0), place(x, y_ticks[-1])], fill=GRID)
        draw.text((place(x, 0)[0], SIZE[1] - BOTTOM + 12), f"{x:g}", fill=INK, font=font, anchor="ma")
    for y in y_ticks:
        draw.line([place(0, y), place(x_ticks[-1], y)], fill=GRID)
        draw.text((LEFT - 12, place(0, y)[1]), f"{y:g}", fill=INK, font=font, anchor="rm")
    draw.text((SIZE[0] / 2, 36), title, fill=INK, font=font, anchor="mm")
    draw.text((LEFT + width / 2, SIZE[1] - 36), x_name, fill=INK, font=font, anchor="mm")
    draw.text((LEFT, TOP - 16), y_name, fill=INK, font=font, anchor="lb")
    for number, curve in enumerate(curves):
        _curve(draw, [place(x, y) for x, y in curve.points], COLOURS[number % len(COLOURS)], curve.dashed)
        line = TOP + 24 + LEGEND_STEP * number
        draw.rectangle(
            [SIZE[0] - RIGHT - 380, line - 3, SIZE[0] - RIGHT - 350, line + 3], COLOURS[number % len(COLOURS)]
        )
        draw.text((SIZE[0] - RIGHT - 338, line), curve.name, fill=INK, font=font, anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _curve(draw: ImageDraw.ImageDraw, places: list[tuple[float, float]], colour: str, dashed: bool) -> None:
    for start, end in zip(places, places[1:], strict=False):
        pieces = max(1, int(math.dist(start, end) / 10)) if dashed else 1
        for k in range(0, pieces, 2 if dashed else 1):
            ends = [tuple(a + (b - a) * f / pieces for a, b in zip(start, end, strict=True)) for f in (k, k + 1)]
            draw.line([(ends[0][0], ends[0][1]), (ends[1][0], ends[1][1])], fill=colour, width=3)
    if not dashed:
        for x, y in places:
            draw.ellipse([x - MARKER, y - MARKER, x + MARKER, y + MARKER], fill=colour)
