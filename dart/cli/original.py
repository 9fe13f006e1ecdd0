"""LLaVA checkpoints in their own format, through this project's `llava` package (imported for them alone)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dart.cli.errors import UserError
from dart.cli.media import Video
from dart.cli.readers import Prompt, middle_square, padded_square
from dart.cli.tiles import tile_cells
from dart.viz import NEWLINE, View
from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.engine.prompts import build_prompt, collate, encode
from llava.model.anyres import parse_pinpoints, select_best_resolution, unpad
from llava.model.builder import load_pretrained_model

CONVERSATIONS = {"llava_llama": "vicuna_v1", "llava_mistral": "mistral_instruct", "llava_qwen": "qwen_1_5"}


class OriginalLlava:
    """Model, tokenizer and picture processor of one checkpoint."""

    def __init__(self, folder: Path, kind: str, device: torch.device, dtype: str | None, attention: str | None):
        self.tokenizer, self.model, self.processor, _ = load_pretrained_model(
            str(folder), device=device, torch_dtype=dtype, attn_implementation=attention
        )
        self.conversation = CONVERSATIONS[kind]
        tower = self.model.get_vision_tower().tower.config
        self.side, self.tile_px = tower.image_size // tower.patch_size, tower.image_size

    def read(self, question: str, images: Sequence[Image.Image], videos: Sequence[Video]) -> Prompt:
        """The prompt of one question. Raises UserError for videos, which these models do not take."""
        config: Any = self.model.config
        if videos:
            raise UserError(f"models of type {config.model_type} take no videos: give the frames as --image")
        text = build_prompt(question, config, self.conversation, len(images))
        batch = collate([encode(text, images, self.tokenizer, self.processor, config)])
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "images": batch.images,
            "image_sizes": batch.sizes,
        }
        views = [self._views(image, k) for k, image in enumerate(images, 1)]
        counts = [sum(len(view.cells) for view in each) for each in views]
        positions = _positions(batch.ids[0].tolist(), counts)
        return Prompt(inputs, [view for each in views for view in each], positions, 0)

    def _views(self, image: Image.Image, number: int) -> list[View]:
        mode = getattr(self.model.config, "image_aspect_ratio", None)
        cells = list(range(self.side**2))
        if getattr(self.model.config, "mm_vision_select_feature", "patch") == "cls_patch":
            cells.insert(0, NEWLINE)  # the class token shows no patch either
        if mode == "anyres":
            return self._tiled(image, number)
        if mode == "pad":
            seen = padded_square(image, tuple(int(255 * mean) for mean in self.processor.image_mean))
        else:
            seen = middle_square(image)
        return [View([f"image {number}"], [seen], (self.side, self.side), cells)]

    def _tiled(self, image: Image.Image, number: int) -> list[View]:
        merge = getattr(self.model.config, "mm_patch_merge_type", "flat")
        if merge != "spatial_unpad":
            raise UserError(f"mm_patch_merge_type {merge!r} with tiles is not supported here, only spatial_unpad")
        best = select_best_resolution(image.size, parse_pinpoints(self.model.config.image_grid_pinpoints))
        columns, rows = (self.side * (pixels // self.tile_px) for pixels in best)
        _, rows, columns = unpad(torch.empty(1, rows, columns), image.size).shape
        overview = View([f"image {number}, overview"], [image], (self.side, self.side), range(self.side**2))
        return [overview, View([f"image {number}, tiles"], [image], (rows, columns), tile_cells(rows, columns))]


def _positions(ids: list[int], counts: list[int]) -> list[int]:
    """Where the visual tokens are once every placeholder is replaced by its picture's `counts`."""
    positions: list[int] = []
    length, rest = 0, iter(counts)
    for token in ids:
        count = next(rest) if token == IMAGE_TOKEN_INDEX else 1
        if token == IMAGE_TOKEN_INDEX:
            positions += range(length, length + count)
        length += count
    return positions
