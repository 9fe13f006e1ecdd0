"""Qwen2-VL: transformers' `Qwen2VLForConditionalGeneration` and its subclasses.

What differs: pictures and videos each have a placeholder id of their own. Positions are three-dimensional (M-RoPE); the
decoder layers are given their rotary embeddings, ready made, so that a kept token keeps its three positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dart.families.base import register, runs_of


@register("qwen2-vl")
class Qwen2VL:
    """model_type `qwen2_vl`: a visual span is a run of picture or of video placeholders in `input_ids`."""

    model_type = "qwen2_vl"
    aligns_labels = False

    def matches(self, model: nn.Module) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) == self.model_type

    def entry(self, model: Any) -> Any:
        return model.model

    def decoder(self, model: Any) -> Any:
        return model.model.language_model

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        ids = arguments.get("input_ids")
        if ids is None or ids.shape[1] == 1:
            return None
        return runs_of((ids == model.config.image_token_id) | (ids == model.config.video_token_id))
