"""LLaVA in its original format: this project's `llava` classes.

What differs: the model merges images into the embeddings itself and passes `visual_span_ids` down; its decoder is
`model.model`, beside which the vision tower lies. In LLaVA-NeXT's images rows end with a newline, by which tiles are
found in the embeddings.
"""

from __future__ import annotations

import ast
from typing import Any

import torch

from dart.families import tiles
from dart.families.base import Family, register


@register("llava_llama", "llava_mistral", "llava_qwen")
class LlavaOriginal(Family):
    """The text model is told the spans."""

    aligns_labels = True
    expands_prompts = True

    def decoder(self, model: Any) -> Any:
        return model.model

    def vision_config(self, model: Any) -> Any:
        tower = model.get_vision_tower()
        return None if tower is None else tower.tower.config

    def vision(self, model: Any) -> tuple[Any, int, Any]:
        tower = model.get_vision_tower()
        if tower is None:
            raise ValueError("this checkpoint has no vision tower: it gives no signals")
        return tower.tower, tower.select_layer, model.model.mm_projector

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        return arguments.get("visual_span_ids")

    def patches(
        self, model: Any, arguments: dict[str, Any], given: dict[str, Any], shape: torch.Size
    ) -> torch.Tensor | None:
        """A newline is made of no patch."""
        spans, newline = arguments["visual_span_ids"].cpu(), getattr(model.model, "image_newline", None)
        if newline is None:
            return None
        beams = sum(len(row[row > 0].unique()) for row in spans) // shape[0]
        return tiles.joined(self._images(model, arguments, spans, max(beams, 1)))

    def grid(self, model: Any, arguments: dict[str, Any], spans: torch.Tensor) -> torch.Tensor | None:
        if getattr(model.model, "image_newline", None) is None:
            return super().grid(model, arguments, spans)
        return tiles.grid(self._images(model, arguments, spans, 1), spans, self._side(model))

    def _side(self, model: Any) -> int:
        config = self.vision_config(model)
        return config.image_size // config.patch_size

    def _images(self, model: Any, arguments: dict[str, Any], spans: torch.Tensor, beams: int) -> list[tiles.Patches]:
        """The patches of each image of every `beams`-th row; see `dart.families.tiles`. spans: on the host."""
        pinpoints, side = model.config.image_grid_pinpoints, self._side(model)
        pixels = self.vision_config(model).image_size
        sizes = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
        grids = [(height // pixels * side, width // pixels * side) for width, height in sizes]
        embeds, newline = arguments["inputs_embeds"], model.model.image_newline
        newlines = (embeds == newline.to(embeds)).all(-1).cpu()
        rows = [newlines[row, spans[row] > 0] for row in range(0, len(spans), beams)]
        return [image for row in rows for image in tiles.merged_patches(row, grids, side)]
