"""LLaVA-NeXT's images for training: a squeezed overview and tiles, merged as the runtime merges them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import nn

from dev.tiny.batches import normalise
from dev.tiny.model import IMAGE_PX, WIDTH, TinyLlava
from dev.tiny.world import IMAGE_SIZES, sample_scene
from llava.eval.probe.drawing import Scene, view_window
from llava.model.anyres import merge_tiles, resize_and_pad_image, select_best_resolution

PINPOINTS = [[336, 672], [672, 336]]
LONE_SHARE = 0.25


class TinyNext(TinyLlava):
    """The tiny model with the embedding that ends a row of patches."""

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.newline = nn.Parameter(torch.zeros(WIDTH))

    def merged_features(self, views: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """views float [B, 1 + tiles, 3, 336, 336] of images of one `size` -> (what the language model sees
        [B, N, WIDTH], the overview's part of it [B, 576, WIDTH])."""
        features = self.image_features(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        merged = [merge_tiles(each, size, PINPOINTS, IMAGE_PX, self.newline) for each in features]
        return torch.stack(merged), features[:, 0]


def views_of(image: Image.Image) -> np.ndarray:
    """uint8 [1 + tiles, 336, 336, 3] as `process_anyres_image` cuts an image."""
    width, height = select_best_resolution(image.size, [(w, h) for w, h in PINPOINTS])
    padded = resize_and_pad_image(image, (width, height))
    views = [image.resize((IMAGE_PX, IMAGE_PX))]
    for top in range(0, height, IMAGE_PX):
        views += [padded.crop((left, top, left + IMAGE_PX, top + IMAGE_PX)) for left in range(0, width, IMAGE_PX)]
    return np.stack([np.asarray(view) for view in views])


def stack_views(images: list[Image.Image]) -> torch.Tensor:
    """float32 [B, 1 + tiles, 3, 336, 336] of images of one size."""
    return normalise(np.stack([views_of(image) for image in images]))


def squeezed(scene: Scene) -> Scene:
    """The scene in the coordinates of the overview, in which the image fills the square."""
    x0, y0, x1, y1 = view_window(scene.size)
    wide, high = x1 - x0, y1 - y0
    things = [
        replace(t, x=(t.x - x0) / wide, y=(t.y - y0) / high, rx=t.rx / wide, ry=t.ry / high) for t in scene.things
    ]
    return replace(scene, size=(IMAGE_PX, IMAGE_PX), things=things)


def scenes_of_one_size(rng: random.Random, number: int, max_shapes: int) -> list[Scene]:
    size = rng.choice(IMAGE_SIZES)

    def stream() -> Iterator[Scene]:
        while True:
            scene = sample_scene(rng, max_shapes, LONE_SHARE)
            if scene.things and scene.size == size:
                yield scene

    found = stream()
    return [next(found) for _ in range(number)]
