"""A prompt for a real checkpoint: random images and words in the geometry that its config states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.shapes import COLOURS, SHAPES, Shape, Workload, workload
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import LANGUAGE_MODELS, load_pretrained_model

PLACEHOLDERS = {"llava": "llava-1.5-7b", "qwen2_vl": "qwen2-vl-7b", "qwen2_5_vl": "qwen2.5-vl-7b"}


def load(path: str, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
    """transformers' checkpoints and original LLaVA ones. Raises ValueError for other families."""
    kind = AutoConfig.from_pretrained(path).model_type
    if kind in LANGUAGE_MODELS:
        return load_pretrained_model(path, device=device, torch_dtype=dtype, attn_implementation=attention)[1]
    if kind not in PLACEHOLDERS:
        known = ", ".join([*LANGUAGE_MODELS, *PLACEHOLDERS])
        raise ValueError(f"{path} is a checkpoint of type {kind}; expected one of {known}")
    model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=attention)
    return model.to(device).eval()


def prompt(model: Any, batch: int, images: int | None) -> Workload:
    """A batch of prompts of `images` images (default: one) for a loaded checkpoint."""
    if model.config.model_type in LANGUAGE_MODELS:
        return _original(model, batch, images or 1)
    shape = SHAPES[PLACEHOLDERS[model.config.model_type]]
    words = model.config.get_text_config(decoder=True).vocab_size
    side = getattr(model.config.vision_config, "image_size", None) or shape.side
    return workload(replace(shape, images=images or 1, vocabulary=words, side=side), model, batch)


def _original(model: Any, batch: int, images: int) -> Workload:
    shape: Shape = SHAPES["llava-1.5-7b"]
    generator = torch.Generator().manual_seed(0)
    side = model.get_vision_tower().tower.config.image_size
    pixels = torch.randn(batch * images, COLOURS, side, side, generator=generator).to(model.device, model.dtype)
    words = torch.randint(
        3, model.config.vocab_size, (batch, shape.text_before + shape.text_after), generator=generator
    )
    before, after = words.split([shape.text_before, shape.text_after], 1)
    ids = torch.cat([before, torch.full((batch, images), IMAGE_TOKEN_INDEX), after], 1).to(model.device)
    with torch.inference_mode():
        merged = model.merge(ids, pixels, None, None, None)
    visual = int((merged.visual_span_ids[0] > 0).sum())
    return Workload(model, {"input_ids": ids, "images": pixels}, batch, merged.inputs_embeds.shape[1], visual)
