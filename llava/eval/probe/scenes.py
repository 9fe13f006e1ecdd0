"""One image of a probe set, its question, its answer, and which tokens carry that answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from llava.eval.probe.drawing import COLORS, GRID, SHAPES, SIGN, Scene, Thing, render

PATCH = 14  # pixels per side of a token of the tower: GRID of them are its 336
SIDE = GRID * PATCH
ASKED_COLORS = ("red", "green", "blue", "yellow", "teal", "black")  # brown is taken for red, gray for teal when small
DOT_COLORS = ("yellow", "teal", "black")  # the model tells these apart on a single token
COUNTS = ("one", "two", "three")
NUMBERS = tuple(str(n) for n in range(10, 100) if n % 15 < 8)  # 48 of 90, so that all are asked equally often
ANSWERS = {
    "color": ASKED_COLORS,
    "dot": DOT_COLORS,
    "number": NUMBERS,
    "count": COUNTS,
    "side": ("left", "right"),
    "presence": ("Yes", "No"),
}
GROUND = 240
PLACEMENT_TRIES = 200
INSIDE = 0.2  # pixels from an edge: however the drawing rounds, it stays in the box
GAP = 1  # tokens between two things
BAND_TINTS = ((252, 246, 230), (226, 238, 252), (234, 250, 228))
REGION = 3  # tokens per side of one region
REGION_TINTS = (214, 256)  # range of each channel
NOISE, NOISE_CELL = 14, 2  # standard deviation in grey levels; pixels per side
PADDING = (122, 116, 104)  # what LLaVA pads images with: CLIP's mean
SPECK = 3  # pixels per side, in the middle of a token
SPECK_INKS = ((255, 255, 255), (0, 0, 0))

Box = tuple[int, int, int, int]  # row, column, rows, columns in tokens


@dataclass(frozen=True)
class Knobs:
    """What the images of a set hold and what is asked about them.

    ask: a key of ANSWERS; "dot" is "color" with fewer colours. kind: of the thing that is asked about, None: any. rows,
    columns: tokens that every thing covers. others: further things, each of another kind and colour. twins: further
    things, equal to each other but for their places. camouflage: the twins have the target's colour (for questions that
    do not ask for it).
    ground: "plain", "bands" (3), "regions" (64) or "noise". bars: rows of padding at the top and at the bottom, as in a
    letterbox. specks: tokens with a speck of junk. strata: where the thing that is asked about may be, names of PLACES,
    as many images of each.
    """

    ask: str = "color"
    kind: str | None = None
    rows: int = 2
    columns: int = 2
    others: int = 0
    twins: int = 0
    camouflage: bool = False
    ground: str = "plain"
    bars: int = 0
    specks: int = 0
    strata: tuple[str, ...] = ("anywhere",)


@dataclass(frozen=True)
class Item:
    """One question. The last `targets` things of the scene carry the answer; `backdrop` is the image without things."""

    scene: Scene
    backdrop: Image.Image
    targets: int
    question: str
    answer: str
    stratum: str

    def image(self, targets: bool = True) -> Image.Image:
        """RGB, SIDE x SIDE; targets: with the things that carry the answer."""
        things = self.scene.things if targets else self.scene.things[: -self.targets]
        return render(Scene(self.scene.size, things, self.scene.seed), self.backdrop)

    def evidence(self) -> np.ndarray:
        """bool [GRID, GRID]: tokens in which a pixel belongs to what carries the answer."""
        changed = (np.asarray(self.image()) != np.asarray(self.image(targets=False))).any(-1)
        return changed.reshape(GRID, PATCH, GRID, PATCH).any((1, 3))


PLACES: dict[str, Callable[[random.Random, int, int], tuple[int, int]]] = {
    "anywhere": lambda rng, rows, columns: (rng.randint(0, GRID - rows), rng.randint(0, GRID - columns)),
    "corner": lambda rng, rows, columns: (rng.choice((0, GRID - rows)), rng.choice((0, GRID - columns))),
    "top": lambda rng, rows, columns: (rng.randint(0, GRID // 4 - rows), rng.randint(0, GRID - columns)),
    "bottom": lambda rng, rows, columns: (rng.randint(GRID * 3 // 4, GRID - rows), rng.randint(0, GRID - columns)),
    # Across the middle, where the tiles of an image of several tiles meet.
    "border": lambda rng, rows, columns: (rng.randint(0, GRID - rows), GRID // 2 - (columns + 1) // 2),
    "left": lambda rng, rows, columns: (rng.randint(0, GRID - rows), rng.randint(0, GRID // 2 - 2 - columns)),
    "right": lambda rng, rows, columns: (rng.randint(0, GRID - rows), rng.randint(GRID // 2 + 2, GRID - columns)),
}


def make(knobs: Knobs, rng: random.Random, answer: str, stratum: str) -> Item:
    """An image to whose question `answer` is the answer. stratum: where the first target is, a name of PLACES."""
    looks, targets, question = _cast(knobs, rng, answer)
    boxes = _boxes(knobs, rng, len(looks), answer if knobs.ask == "side" else stratum)
    # The targets are placed first, and drawn last: without them everything else is drawn the same.
    things = [_thing(look, box) for look, box in zip(looks, boxes, strict=True)][::-1]
    scene = Scene((SIDE, SIDE), things, rng.randrange(2**31))
    return Item(scene, _backdrop(knobs, rng, boxes), targets, question, answer, stratum)


class Look(NamedTuple):
    kind: str
    color: str
    number: str = ""


def _cast(knobs: Knobs, rng: random.Random, answer: str) -> tuple[list[Look], int, str]:
    """(how the things look, those that carry the answer first; how many these are; the question)."""
    kinds, colors = rng.sample(SHAPES, len(SHAPES)), rng.sample(list(COLORS), len(COLORS))
    kinds = [knobs.kind or kinds[0], *(kind for kind in kinds if kind != (knobs.kind or kinds[0]))]
    if knobs.ask == "presence":
        # Colours and kinds all occur, in other pairs when the answer is No: every thing has to be seen.
        pairs = [Look(kind, color) for kind, color in zip(kinds[: knobs.others + 1], colors, strict=False)]
        kind, color = (kinds[0], colors[0]) if answer == "Yes" else (kinds[0], colors[1])
        return pairs, len(pairs), f"Is there a {color} {kind} in the image?"
    if knobs.ask == "count":
        count = COUNTS.index(answer) + 1
        return [Look(kinds[0], colors[0])] * count, count, "How many shapes are there in the image?"
    if knobs.ask == "number":
        return [Look(SIGN, colors[0], answer)], 1, "What number is on the sign?"
    if knobs.ask in ("color", "dot"):
        colors = [answer, *(color for color in colors if color != answer)]
        question = f"What color is the {kinds[0]}?"
    else:
        question = f"On which side of the image is the {kinds[0]}?"
    looks = [Look(kind, color) for kind, color in zip(kinds[: knobs.others + 1], colors, strict=False)]
    return [*looks, *[Look(kinds[-1], colors[0 if knobs.camouflage else -1])] * knobs.twins], 1, question


def _boxes(knobs: Knobs, rng: random.Random, count: int, stratum: str) -> list[Box]:
    """Places of `count` things that do not touch each other nor the bars; the first one is in its stratum."""
    while True:
        found: list[Box] = []
        for _ in range(PLACEMENT_TRIES):
            place = PLACES["anywhere" if found else stratum]
            row, column = place(rng, knobs.rows, knobs.columns)
            inside = knobs.bars <= row <= GRID - knobs.bars - knobs.rows
            near = (abs(row - r) < knobs.rows + GAP and abs(column - c) < knobs.columns + GAP for r, c, *_ in found)
            if inside and not any(near):
                found.append((row, column, knobs.rows, knobs.columns))
            if len(found) == count:
                return found


def _thing(look: Look, box: Box) -> Thing:
    """The thing that fills the box to its last pixel, and no pixel beyond it."""
    row, column, rows, columns = box
    height, width = rows * PATCH - 1, columns * PATCH - 1
    x, y = column * PATCH + width / 2 + INSIDE, row * PATCH + height / 2 + INSIDE
    return Thing(look.kind, look.color, x / SIDE, y / SIDE, width / 2 / SIDE, height / 2 / SIDE, look.number)


def _backdrop(knobs: Knobs, rng: random.Random, boxes: Sequence[Box]) -> Image.Image:
    pixels = np.full((SIDE, SIDE, 3), GROUND, dtype=np.float32)
    noise = np.random.default_rng(rng.randrange(2**31))
    if knobs.ground == "bands":
        cuts = sorted(rng.sample(range(2, GRID - 1), 2))
        for tint, start, stop in zip(BAND_TINTS, (0, *cuts), (*cuts, GRID), strict=True):
            pixels[start * PATCH : stop * PATCH] = tint
    elif knobs.ground == "regions":
        tints = noise.integers(*REGION_TINTS, (GRID // REGION, GRID // REGION, 3))
        pixels[:] = tints.repeat(REGION * PATCH, 0).repeat(REGION * PATCH, 1)
    elif knobs.ground == "noise":
        cells = noise.normal(0, NOISE, (SIDE // NOISE_CELL, SIDE // NOISE_CELL, 1))
        pixels += cells.repeat(NOISE_CELL, 0).repeat(NOISE_CELL, 1)
    if knobs.bars:
        pixels[: knobs.bars * PATCH] = pixels[-knobs.bars * PATCH :] = PADDING
    taken = {(r + i, c + j) for r, c, rows, columns in boxes for i in range(rows) for j in range(columns)}
    free = [(r, c) for r in range(GRID) for c in range(GRID) if (r, c) not in taken]
    margin = (PATCH - SPECK) // 2
    for row, column in rng.sample(free, knobs.specks):
        top, left = row * PATCH + margin, column * PATCH + margin
        pixels[top : top + SPECK, left : left + SPECK] = rng.choice(SPECK_INKS)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
