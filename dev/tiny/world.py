"""The synthetic world of the tiny model: coloured shapes and number signs, their images and their per-patch labels.

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
IMAGE_SIZES = ((336, 336), (448, 336), (336, 448), (400, 300), (300, 400), (512, 384), (384, 480), (280, 280))
MIN_RADIUS, MAX_RADIUS = 0.075, 0.15
SIGN_HALF_WIDTH, SIGN_HALF_HEIGHT = 0.145, 0.105
MAX_SHAPES, MAX_SIGNS = 4, 2
LONE_SHARE = 0.1
PLACEMENT_TRIES = 60
LABEL_PIXELS = 4  # label raster: pixels per patch side
MIN_COVERAGE = 0.35  # share of a patch that an object must cover to own it


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


def sample_scene(rng: random.Random, max_shapes: int = MAX_SHAPES, lone_share: float = LONE_SHARE) -> Scene:
    """A random scene: 1 to `max_shapes` shapes, up to two signs of different colours, nothing overlapping.

    `lone_share` of the scenes hold one thing only.
    """
    size = rng.choice(IMAGE_SIZES)
    wanted_shapes = rng.randint(1, max_shapes)
    wanted_signs = rng.choices((0, 1, 2), (0.35, 0.4, 0.25))[0]
    if rng.random() < lone_share:
        wanted_shapes, wanted_signs = (0, 1) if rng.random() < 0.5 else (1, 0)
    sign_colors = rng.sample(list(COLORS), MAX_SIGNS)
    x0, y0, x1, y1 = view_window(size)
    things: list[Thing] = []
    plans = [(SIGN, c) for c in sign_colors[:wanted_signs]]
    plans += [(rng.choice(SHAPES), rng.choice(list(COLORS))) for _ in range(wanted_shapes)]
    for kind, color in plans:
        for _ in range(PLACEMENT_TRIES):
            if kind == SIGN:
                rx, ry = SIGN_HALF_WIDTH, SIGN_HALF_HEIGHT
            else:
                rx = ry = rng.uniform(MIN_RADIUS, MAX_RADIUS)
                if kind == "rectangle":
                    ry = max(MIN_RADIUS, rx * rng.uniform(0.6, 1.0))
            x, y = rng.uniform(x0 + rx, x1 - rx), rng.uniform(y0 + ry, y1 - ry)
            if all(abs(x - t.x) > rx + t.rx + 0.02 or abs(y - t.y) > ry + t.ry + 0.02 for t in things):
                number = str(rng.randint(10, 99)) if kind == SIGN else ""
                things.append(Thing(kind, color, x, y, rx, ry, number))
                break
    base = rng.randint(215, 255)
    background = tuple(min(255, max(0, base + rng.randint(-15, 15))) for _ in range(3))
    texture = rng.choices(("plain", "stripes", "noise", "checks"), (0.5, 0.17, 0.17, 0.16))[0]
    return Scene(size, things, rng.randrange(2**31), background, texture, rng.random() < 0.15)


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


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, to_px, fill) -> None:
    box = [*to_px(thing.x - thing.rx, thing.y - thing.ry), *to_px(thing.x + thing.rx, thing.y + thing.ry)]
    if thing.kind == "circle":
        draw.ellipse(box, fill=fill)
    elif thing.kind in ("rectangle", SIGN):
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon(_outline(thing, to_px), fill=fill)


def _digit_boxes(thing: Thing) -> list[tuple[float, float, float, float]]:
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


def render(scene: Scene) -> Image.Image:
    """The image (RGB, `scene.size`) as a camera would see it."""
    image = _background(scene)
    draw = ImageDraw.Draw(image)
    side = max(scene.size)
    x0, y0, _, _ = view_window(scene.size)
    rng = random.Random(scene.seed)

    def to_px(x: float, y: float) -> tuple[float, float]:
        return (x - x0) * side, (y - y0) * side

    for thing in scene.things:
        jitter = 14 if thing.color in ("red", "green", "blue", "yellow", "teal", "brown") else 6
        fill = tuple(min(255, max(0, c + rng.randint(-jitter, jitter))) for c in COLORS[thing.color])
        _draw(draw, thing, to_px, fill)
        if thing.kind == SIGN:
            ink = DARK_INK if thing.color in DARK_INK_PLATES else LIGHT_INK
            for digit, (bx0, by0, bx1, by1) in zip(thing.number, _digit_boxes(thing), strict=True):
                left, top = to_px(bx0, by0)
                right, bottom = to_px(bx1, by1)
                mask = _glyph(digit, round(right - left), round(bottom - top))
                image.paste(ink, (round(left), round(top)), mask)
    return image.filter(ImageFilter.GaussianBlur(side / 200)) if scene.blur else image


def patch_labels(scene: Scene, rows: int = GRID, columns: int = GRID) -> dict[str, np.ndarray]:
    """Per-patch truth of the square view cut into rows x columns patches: int arrays [rows, columns]; -1 = none.

    color: index into COLORS; kind: index into KINDS; digit: 0-9; slot: 0 (tens) or 1 (units);
    center: 1 where an object's centre lies; pad: 1 outside the image; thing: index into `scene.things`.
    """
    width, height = columns * LABEL_PIXELS, rows * LABEL_PIXELS

    def owner(draw_all) -> np.ndarray:
        raster = Image.new("L", (width, height), 0)
        draw_all(ImageDraw.Draw(raster))
        cells = (
            np.asarray(raster)
            .reshape(rows, LABEL_PIXELS, columns, LABEL_PIXELS)
            .transpose(0, 2, 1, 3)
            .reshape(rows, columns, -1)
        )
        counts = np.stack([(cells == k).mean(-1) for k in range(1, 2 * len(scene.things) + 2)], -1)
        best = counts.argmax(-1)
        return np.where(counts.max(-1) >= MIN_COVERAGE, best, -1)

    def to_px(x: float, y: float) -> tuple[float, float]:
        return x * width - 0.5, y * height - 0.5

    def draw_things(draw: ImageDraw.ImageDraw) -> None:
        for k, thing in enumerate(scene.things):
            _draw(draw, thing, to_px, k + 1)

    def draw_digits(draw: ImageDraw.ImageDraw) -> None:
        for k, thing in enumerate(scene.things):
            for slot, (bx0, by0, bx1, by1) in enumerate(_digit_boxes(thing) if thing.number else []):
                draw.rectangle([*to_px(bx0, by0), *to_px(bx1, by1)], fill=2 * k + slot + 1)

    things, digits = owner(draw_things), owner(draw_digits)
    color_of = np.array([list(COLORS).index(t.color) for t in scene.things] + [-1])
    kind_of = np.array([KINDS.index(t.kind) for t in scene.things] + [-1])
    digit_of = np.array([int(t.number[s]) if t.number else -1 for t in scene.things for s in (0, 1)] + [-1])
    slot = np.where(digits >= 0, digits % 2, -1)
    center = np.zeros((rows, columns), dtype=np.int64)
    for t in scene.things:
        center[min(rows - 1, int(t.y * rows)), min(columns - 1, int(t.x * columns))] = 1
    x0, y0, x1, y1 = view_window(scene.size)
    down, across = (np.arange(rows)[:, None] + 0.5) / rows, (np.arange(columns)[None, :] + 0.5) / columns
    pad = ~((down > y0) & (down < y1) & (across > x0) & (across < x1))
    return {
        "thing": things,
        "color": color_of[things],
        "kind": kind_of[things],
        "digit": digit_of[digits],
        "slot": slot,
        "center": center,
        "pad": pad.astype(np.int64),
    }
