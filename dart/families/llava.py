"""LLaVA: this project's `llava` classes (original checkpoints) and transformers' `LlavaForConditionalGeneration`.

What differs: the original format merges pictures into the embeddings itself and passes `visual_span_ids` down;
transformers' class keeps one placeholder id per visual token in `input_ids`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dart.families.base import Adapter, Placeholders, register

ORIGINAL_TYPES = ("llava_llama", "llava_mistral", "llava_qwen")


@register("llava")
class LlavaOriginal(Adapter):
    """model_type `llava_llama`, `llava_mistral`, `llava_qwen`: the text model is the entry and is told the spans."""

    aligns_labels = True

    def matches(self, model: nn.Module) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) in ORIGINAL_TYPES

    def entry(self, model: Any) -> Any:
        return model.model

    def decoder(self, model: Any) -> Any:
        return model.model

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        return arguments.get("visual_span_ids")


@register("llava-hf")
class LlavaTransformers(Placeholders):
    """model_type `llava`: pictures alone."""

    model_type = "llava"
    placeholders = ("image_token_id",)
