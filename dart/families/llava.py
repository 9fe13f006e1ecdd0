"""LLaVA in its original format: this project's `llava` classes.

What differs: the model merges images into the embeddings itself and passes `visual_span_ids` down; its decoder is
`model.model`, beside which the vision tower lies.
"""

from __future__ import annotations

from typing import Any

import torch

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
