"""Training images of the tiny Qwen models: any size within the processor's limits, cut into visual tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dev.tiny.batches import TRAINING_LONE_SHARE, normalise
from dev.tiny.codes import encode_facts
from dev.tiny.qwen.model import TOKEN_PX
from dev.tiny.tiles import squeezed
from dev.tiny.world import IMAGE_SIZES, patch_labels, sample_scene
from llava.eval.probe.drawing import SIGN, Scene, render

MIN_TOKENS, MAX_TOKENS = 256, 512  # the processor's limits, in visual tokens
TRAINED_TOKENS = 400  # larger ones are the same but slower
STRETCH = 0.06  # rounding to whole tokens changes an image's proportions by as much
WINDOW_JITTER, ELSEWHERE_SHARE, SIGN_WEIGHT = 1, 0.1, 3.0


@dataclass(frozen=True)
class Grid:
    rows: int
    columns: int

    @property
    def pixels(self) -> tuple[int, int]:
        """(width, height)."""
        return self.columns * TOKEN_PX, self.rows * TOKEN_PX


def sample_grid(rng: random.Random, size: tuple[int, int], tokens: tuple[int, int]) -> Grid:
    """The visual tokens of an image of `size` (width, height), their number drawn from [low, high]."""
    wanted = rng.uniform(*tokens)
    tall = math.sqrt(wanted * size[1] / size[0]) * (1 + rng.uniform(-STRETCH, STRETCH))
    return Grid(max(1, round(tall)), max(1, round(wanted / tall)))


def scenes_of_size(rng: random.Random, size: tuple[int, int], count: int, max_shapes: int) -> list[Scene]:
    def stream() -> Iterator[Scene]:
        while True:
            scene = sample_scene(rng, max_shapes, TRAINING_LONE_SHARE)
            if scene.things and scene.size == size:
                yield scene

    found = stream()
    return [next(found) for _ in range(count)]


def labels_of(scene: Scene, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(codes float32 [rows, columns, FACTS], the thing each token belongs to or -1, int64 [rows, columns])."""
    labels = patch_labels(squeezed(scene), grid.rows, grid.columns)
    return encode_facts(labels), labels["thing"]


def codes_of(scenes: list[Scene], grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes float32 [B, N, FACTS], owners int64 [B, N])."""
    codes, owners = zip(*(labels_of(scene, grid) for scene in scenes), strict=True)
    return torch.from_numpy(np.stack(codes)).flatten(1, 2), torch.from_numpy(np.stack(owners)).flatten(1, 2)


def picture_of(scene: Scene, grid: Grid) -> np.ndarray:
    """uint8 [H, W, 3], resized as the processor does."""
    return np.asarray(render(scene).resize(grid.pixels, 3))


def frames_of(scenes: list[Scene], grid: Grid) -> torch.Tensor:
    """A still image is two equal frames: float32 [B, 2, 3, H, W]."""
    pixels = normalise(np.stack([picture_of(scene, grid) for scene in scenes]))
    return pixels[:, None].expand(-1, 2, -1, -1, -1)


class SceneBank:
    """Rendered scenes to cut windows from, as `dev.tiny.batches.SceneBank`, on grids of many sizes."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._items: list[tuple[Scene, Grid, np.ndarray, np.ndarray]] = []

    def refresh(self, rng: random.Random, growing: int, replacing: int, max_shapes: int) -> None:
        full = len(self._items) >= self.capacity
        for _ in range(replacing if full else growing):
            size = rng.choice(IMAGE_SIZES)
            (scene,) = scenes_of_size(rng, size, 1, max_shapes)
            grid = sample_grid(rng, size, (MIN_TOKENS, MAX_TOKENS))
            item = (scene, grid, picture_of(scene, grid), labels_of(scene, grid)[0])
            if full:
                self._items[rng.randrange(self.capacity)] = item
            else:
                self._items.append(item)

    def windows(self, rng: random.Random, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(frames float32 [count, 2, 3, side * 28, side * 28], codes float32 [count, side², FACTS])."""
        pictures, codes = [], []
        for _ in range(count):
            scene, grid, picture, code = rng.choice(self._items)
            row, column = window_corner(squeezed(scene), grid, rng, side)
            pictures.append(
                picture[row * TOKEN_PX : (row + side) * TOKEN_PX, column * TOKEN_PX : (column + side) * TOKEN_PX]
            )
            codes.append(code[row : row + side, column : column + side].reshape(side * side, -1))
        pixels = normalise(np.stack(pictures))
        return pixels[:, None].expand(-1, 2, -1, -1, -1), torch.from_numpy(np.stack(codes))


def window_corner(scene: Scene, grid: Grid, rng: random.Random, side: int) -> tuple[int, int]:
    """(row, column) of the first token of a window that mostly looks at one of the scene's objects."""
    last = (grid.rows - side, grid.columns - side)
    if rng.random() < ELSEWHERE_SHARE:
        return rng.randint(0, last[0]), rng.randint(0, last[1])
    weights = [SIGN_WEIGHT if t.kind == SIGN else 1.0 for t in scene.things]
    thing = rng.choices(scene.things, weights)[0]
    middle = (int(thing.y * grid.rows), int(thing.x * grid.columns))
    corner = [c - side // 2 + rng.randint(-WINDOW_JITTER, WINDOW_JITTER) for c in middle]
    row, column = (min(most, max(0, c)) for c, most in zip(corner, last, strict=True))
    return row, column
