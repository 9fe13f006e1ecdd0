"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures of any size, two frames of a video on one grid of patches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from dart.cli.media import Video
from dart.cli.readers import Reader, Tensors, Visual
from dart.viz import View

VIDEO_FILES = ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json")
CHANNELS = 3


class Qwen2(Reader):
    """Qwen2-VL."""

    processor_class = ("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil")
    has_videos = True

    def images(self, images: Sequence[Image.Image]) -> tuple[Tensors, list[Visual]]:
        read = self.processor(images=list(images), return_tensors="pt")
        visuals = []
        for k, (image, grid) in enumerate(zip(images, read["image_grid_thw"], strict=True), 1):
            view = self._view([f"image {k}"], [image], grid)
            visuals.append(Visual(self.image_token * len(view.cells), [view]))
        return {"pixel_values": read["pixel_values"], "image_grid_thw": read["image_grid_thw"]}, visuals

    def videos(self, videos: Sequence[Video]) -> tuple[Tensors, list[Visual]]:
        pixels, grids, visuals = [], [], []
        for number, video in enumerate(videos, 1):
            values, grid = self._patches(video.frames)
            pixels.append(values)
            grids.append(grid)
            views = []
            for k in range(0, len(video.frames), self.pace):
                frames = video.frames[k : k + self.pace]
                titles = [f"video {number}, frame {k + f}" for f in range(1, len(frames) + 1)]
                views.append(self._view(titles, frames, grid))
            visuals.append(Visual(self.video_text(video, views), views))
        return {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.stack(grids)}, visuals

    @property
    def pace(self) -> int:
        """Frames that share a grid."""
        return self.processor.temporal_patch_size

    def video_text(self, video: Video, views: list[View]) -> str:
        return self.video_token * sum(len(view.cells) for view in views)

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"]
        kinds = (ids == self.config.image_token_id).int() + 2 * (ids == self.config.video_token_id).int()
        return {**inputs, "mm_token_type_ids": kinds}

    def frame_limits(self, frames: int) -> dict[str, int]:
        """Least and most pixels of a frame, as the checkpoint sets them for videos."""
        for name in VIDEO_FILES:
            if (self.folder / name).is_file():
                given = json.loads((self.folder / name).read_text(encoding="utf-8"))
                given = given.get("video_processor", given)
                size = given.get("size") or {}
                limits: dict[str, Any] = {
                    "shortest_edge": given.get("min_pixels") or size.get("shortest_edge"),
                    "longest_edge": given.get("max_pixels") or size.get("longest_edge"),
                }
                if all(limits.values()):
                    return limits
        return dict(self.processor.size)

    def _view(self, titles: list[str], images: list[Image.Image], grid: torch.Tensor) -> View:
        rows, columns = (int(n) // self.processor.merge_size for n in grid[1:])
        return View(titles, images, (rows, columns), range(rows * columns))

    def _patches(self, frames: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixel values [T * H * W, D], grid LongTensor (T, H, W)) of a video; an odd last frame is shown twice.

        The picture processor repeats a picture `pace` times along the patch; here these are different frames.
        """
        frames = frames + frames[-1:] * (-len(frames) % self.pace)
        read = self.processor(images=frames, size=self.frame_limits(len(frames)), return_tensors="pt")
        values = read["pixel_values"].unflatten(-1, (CHANNELS, self.pace, -1))[:, :, 0]
        moments = values.view(len(frames) // self.pace, self.pace, -1, CHANNELS, values.shape[-1])
        rows, columns = (int(n) for n in read["image_grid_thw"][0, 1:])
        grid = torch.tensor([len(moments), rows, columns])
        return moments.permute(0, 2, 3, 1, 4).reshape(-1, read["pixel_values"].shape[-1]), grid


class Qwen25(Qwen2):
    """Qwen2.5-VL: positions of a video's frames count in seconds."""

    def videos(self, videos: Sequence[Video]) -> tuple[Tensors, list[Visual]]:
        tensors, visuals = super().videos(videos)
        return {**tensors, "second_per_grid_ts": torch.tensor([self.pace / video.fps for video in videos])}, visuals


class Qwen3(Qwen2):
    """Qwen3-VL: a time stands before every grid of a video; its pixels are limited as a whole."""

    def video_text(self, video: Video, views: list[View]) -> str:
        start, end = self._borders()
        parts = []
        for k, view in enumerate(views):
            # The mean of the times of a grid's frames; an odd last frame is shown twice.
            shown = [min(k * self.pace + f, len(video.frames) - 1) for f in (0, self.pace - 1)]
            seconds = sum(shown) / len(shown) / video.fps
            parts.append(f"<{seconds:.1f} seconds>{start}{self.video_token * len(view.cells)}{end}")
        return "".join(parts)

    def video_pattern(self) -> str:
        start, end = self._borders()
        return re.escape(f"{start}{self.video_token}{end}")

    def frame_limits(self, frames: int) -> dict[str, int]:
        return {name: pixels // frames for name, pixels in super().frame_limits(frames).items()}

    def _borders(self) -> tuple[str, str]:
        return self.token(self.config.vision_start_token_id), self.token(self.config.vision_end_token_id)
