"""The random scenes of the tiny model's world and their per-patch labels; `llava.eval.probe.drawing` draws them."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from llava.eval.probe.drawing import (
    COLORS,
    GRID,
    KINDS,
    SHAPES,
    SIGN,
    Scene,
    Thing,
    digit_boxes,
    draw_thing,
    view_window,
)

IMAGE_SIZES = ((336, 336), (448, 336), (336, 448), (400, 300), (300, 400), (512, 384), (384, 480), (280, 280))
MIN_RADIUS, MAX_RADIUS = 0.075, 0.15
SIGN_HALF_WIDTH, SIGN_HALF_HEIGHT = 0.145, 0.105
MAX_SHAPES, MAX_SIGNS = 4, 2
LONE_SHARE = 0.1
PLACEMENT_TRIES = 60
LABEL_PIXELS = 4  # label raster: pixels per patch side
MIN_COVERAGE = 0.35  # share of a patch that an object must cover to own it


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
            draw_thing(draw, thing, to_px, k + 1)

    def draw_digits(draw: ImageDraw.ImageDraw) -> None:
        for k, thing in enumerate(scene.things):
            for slot, (bx0, by0, bx1, by1) in enumerate(digit_boxes(thing) if thing.number else []):
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
