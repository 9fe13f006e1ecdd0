"""Coloured shapes and number signs on plain or textured grounds: what the embedded models know, drawn.

A scene is described in the coordinates of the model's view: the image padded to a square of side 1, as LLaVA does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

COLORS = {
    "red": (225, 25, 25),
    "green": (30, 200, 40),
    "blue": (25, 45, 230),
    "yellow": (245, 230, 30),
    "brown": (150, 65, 35),
    "teal": (0, 128, 128),
    "gray": (128, 128, 128),
    "black": (8, 8, 8),
}
SHAPES = ("circle", "triangle", "rectangle", "star", "cross")
SIGN = "sign"
KINDS = (*SHAPES, SIGN)
GRID = 24  # patches per side: 336 px / 14 px
LIGHT_INK, DARK_INK = (255, 255, 255), (0, 0, 0)
DARK_INK_PLATES = ("yellow", "green", "gray")


@dataclass(frozen=True)
class Thing:
    """One object; `x`, `y`, `rx`, `ry` are centre and half extents as fractions of the square view."""

    kind: str
    color: str
    x: float
    y: float
    rx: float
    ry: float
    number: str = ""


@dataclass
class Scene:
    size: tuple[int, int]
    things: list[Thing]
    seed: int
    background: tuple[int, int, int] = (240, 240, 240)
    texture: str = "plain"
    blur: bool = False
    extra: dict = field(default_factory=dict)

    @property
    def shapes(self) -> list[Thing]:
        return [t for t in self.things if t.kind != SIGN]

    @property
    def signs(self) -> list[Thing]:
        return [t for t in self.things if t.kind == SIGN]


def view_window(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of the image inside its padded square, as fractions."""
    side = max(size)
    mx, my = (side - size[0]) // 2 / side, (side - size[1]) // 2 / side
    return mx, my, mx + size[0] / side, my + size[1] / side


def _outline(thing: Thing, to_px) -> list[tuple[float, float]]:
    """Corner points of a polygon shape in pixels."""
    x, y, rx, ry = thing.x, thing.y, thing.rx, thing.ry
    if thing.kind == "triangle":
        points = [(x, y - ry), (x - rx, y + ry), (x + rx, y + ry)]
    elif thing.kind == "star":
        angles = [np.pi * (k / 5 - 0.5) for k in range(10)]
        inner = 0.45
        points = [
            (x + rx * np.cos(a) * (1 if k % 2 == 0 else inner), y + ry * np.sin(a) * (1 if k % 2 == 0 else inner))
            for k, a in enumerate(angles)
        ]
    else:
        w = 0.36
        steps = [
            (-w, -1),
            (w, -1),
            (w, -w),
            (1, -w),
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
        ]
        points = [(x + dx * rx, y + dy * ry) for dx, dy in steps]
    return [to_px(px, py) for px, py in points]


def draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, to_px, fill) -> None:
    box = [*to_px(thing.x - thing.rx, thing.y - thing.ry), *to_px(thing.x + thing.rx, thing.y + thing.ry)]
    if thing.kind == "circle":
        draw.ellipse(box, fill=fill)
    elif thing.kind in ("rectangle", SIGN):
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon(_outline(thing, to_px), fill=fill)


def digit_boxes(thing: Thing) -> list[tuple[float, float, float, float]]:
    """Boxes of a sign's digits (x0, y0, x1, y1), left to right."""
    width = 2 * thing.rx * 0.42
    left = thing.x - width * len(thing.number) / 2
    top, bottom = thing.y - thing.ry * 0.78, thing.y + thing.ry * 0.78
    return [(left + k * width, top, left + (k + 1) * width, bottom) for k in range(len(thing.number))]


_GLYPHS: dict[tuple[str, int, int], Image.Image] = {}
GLYPH_FONT_PX = 96


def _glyph(digit: str, width: int, height: int) -> Image.Image:
    """The digit as a mask stretched to its box, so that every font metric is ours."""
    key = (digit, width, height)
    if key not in _GLYPHS:
        font = ImageFont.load_default(GLYPH_FONT_PX)
        box = font.getbbox(digit)
        mask = Image.new("L", (box[2] - box[0] + 12, box[3] - box[1] + 4), 0)
        ImageDraw.Draw(mask).text((6 - box[0], 2 - box[1]), digit, fill=255, font=font, stroke_width=3)
        _GLYPHS[key] = mask.resize((width, height), Image.Resampling.BILINEAR)
    return _GLYPHS[key]


def _background(scene: Scene) -> Image.Image:
    w, h = scene.size
    rng = np.random.default_rng(scene.seed)
    field_ = np.full((h, w, 3), scene.background, dtype=np.float32)
    if scene.texture == "noise":
        field_ += rng.normal(0, 14, (h, w, 1))
    elif scene.texture == "stripes":
        period = int(rng.integers(8, 26))
        field_ -= 26 * (((np.arange(w)[None, :] + np.arange(h)[:, None]) // period) % 2)[..., None]
    elif scene.texture == "checks":
        period = int(rng.integers(10, 30))
        field_ -= 22 * (((np.arange(w)[None, :] // period) + (np.arange(h)[:, None] // period)) % 2)[..., None]
    return Image.fromarray(field_.clip(0, 255).astype(np.uint8))


def render(scene: Scene, backdrop: Image.Image | None = None) -> Image.Image:
    """The image (RGB, `scene.size`) as a camera would see it. backdrop: what is behind the things, else the scene's."""
    image = _background(scene) if backdrop is None else backdrop.copy()
    draw = ImageDraw.Draw(image)
    side = max(scene.size)
    x0, y0, _, _ = view_window(scene.size)
    rng = random.Random(scene.seed)

    def to_px(x: float, y: float) -> tuple[float, float]:
        return (x - x0) * side, (y - y0) * side

    for thing in scene.things:
        jitter = 14 if thing.color in ("red", "green", "blue", "yellow", "teal", "brown") else 6
        fill = tuple(min(255, max(0, c + rng.randint(-jitter, jitter))) for c in COLORS[thing.color])
        draw_thing(draw, thing, to_px, fill)
        if thing.kind == SIGN:
            ink = DARK_INK if thing.color in DARK_INK_PLATES else LIGHT_INK
            for digit, (bx0, by0, bx1, by1) in zip(thing.number, digit_boxes(thing), strict=True):
                left, top = to_px(bx0, by0)
                right, bottom = to_px(bx1, by1)
                mask = _glyph(digit, round(right - left), round(bottom - top))
                image.paste(ink, (round(left), round(top)), mask)
    return image.filter(ImageFilter.GaussianBlur(side / 200)) if scene.blur else image
