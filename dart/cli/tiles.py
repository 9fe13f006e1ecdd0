"""LLaVA's families of transformers: a square picture, or an overview and tiles with a newline after every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from dart.cli.media import Video
from dart.cli.readers import Reader, Tensors, Visual, middle_square, padded_square
from dart.viz import NEWLINE, View


def tile_cells(rows: int, columns: int) -> list[int]:
    """Patches in reading order, a newline behind each row."""
    return [k for row in range(rows) for k in (*range(row * columns, (row + 1) * columns), NEWLINE)]


class Llava(Reader):
    """LLaVA-1.5: every picture is one square."""

    processor_class = ("llava.image_processing_pil_llava", "LlavaImageProcessorPil")

    def images(self, images: Sequence[Image.Image]) -> tuple[Tensors, list[Visual]]:
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        side = self.side
        cells = list(range(side**2))
        if self.config.vision_feature_select_strategy == "full":
            cells.insert(0, NEWLINE)  # the class token shows no patch either
        visuals = []
        for k, image in enumerate(images, 1):
            view = View([f"image {k}"], [self._square(image)], (side, side), cells)
            visuals.append(Visual(self.image_token * len(cells), [view]))
        return {"pixel_values": pixels}, visuals

    @property
    def side(self) -> int:
        """Patches along a side of the vision tower's square."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size

    def _square(self, image: Image.Image) -> Image.Image:
        if getattr(self.processor, "do_pad", False):
            return padded_square(image, tuple(int(255 * mean) for mean in self.processor.image_mean))
        return middle_square(image)


class LlavaNext(Llava):
    """LLaVA-NeXT: an overview, then the tiles merged into one picture without its padding."""

    processor_class = ("llava_next.image_processing_pil_llava_next", "LlavaNextImageProcessorPil")

    def images(self, images: Sequence[Image.Image]) -> tuple[Tensors, list[Visual]]:
        read = self.processor(list(images), return_tensors="pt")
        tensors = {"pixel_values": read["pixel_values"], "image_sizes": read["image_sizes"]}
        return tensors, [self._tiled(image, k) for k, image in enumerate(images, 1)]

    def _tiled(self, image: Image.Image, number: int) -> Visual:
        overview = View([f"image {number}, overview"], [image], (self.side, self.side), range(self.side**2))
        grid = self._grid((image.height, image.width))
        tiles = View([f"image {number}, tiles"], [image], grid, tile_cells(*grid))
        return Visual(self.image_token * (len(overview.cells) + len(tiles.cells)), [overview, tiles])

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches of the merged tiles of a picture of `size` (height, width)."""
        config = self.config
        shape = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        whole = torch.empty(1, shape[0] * self.side, shape[1] * self.side)
        _, rows, columns = unpad_image(whole, size).shape
        return rows, columns


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: large pictures are scaled down to nine tiles; of several pictures each is one square."""

    processor_class = ("llava_onevision.image_processing_pil_llava_onevision", "LlavaOnevisionImageProcessorPil")
    has_videos = True
    shrink_from = 1.1  # scale at which the model starts to shrink

    def images(self, images: Sequence[Image.Image]) -> tuple[Tensors, list[Visual]]:
        read = self.processor([list(images)], return_tensors="pt")
        tensors = {name: read[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
        if len(images) == 1:
            return tensors, [self._tiled(images[0], 1)]
        cells = [*range(self.side**2), NEWLINE]
        color = tuple(int(255 * mean) for mean in self.processor.image_mean)
        visuals = []
        for k, image in enumerate(images, 1):
            view = View([f"image {k}"], [padded_square(image, color)], (self.side, self.side), cells)
            visuals.append(Visual(self.image_token * len(cells), [view]))
        return tensors, visuals

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = super()._grid(size)
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        scale = math.sqrt(rows * columns / (most * self.side**2))
        return (int(rows // scale), int(columns // scale)) if scale > self.shrink_from else (rows, columns)

    def videos(self, videos: Sequence[Video]) -> tuple[Tensors, list[Visual]]:
        side = math.ceil(self.side / 2)  # frames are pooled two by two
        clips, visuals = [], []
        for k, video in enumerate(videos, 1):
            # The overview of a picture is the whole of it, squeezed to the tower's square, as frames are.
            clips.append(torch.cat([self._overview(frame) for frame in video.frames]))
            views = [
                View([f"video {k}, frame {f}"], [frame], (side, side), range(side**2))
                for f, frame in enumerate(video.frames, 1)
            ]
            views[-1] = View(views[-1].titles, views[-1].images, views[-1].grid, [*views[-1].cells, NEWLINE])
            visuals.append(Visual(self.video_token * sum(len(view.cells) for view in views), views))
        return {"pixel_values_videos": _stacked(clips)}, visuals

    def _overview(self, frame: Image.Image) -> torch.Tensor:
        return self.processor([frame], return_tensors="pt")["pixel_values"][:, 0]


def _stacked(clips: list[torch.Tensor]) -> Any:
    if len({len(clip) for clip in clips}) > 1:
        raise ValueError("LLaVA-OneVision takes videos of one number of frames at a time: choose it with --frames")
    return torch.stack(clips)
