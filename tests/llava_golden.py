"""What the LLaVA tests share: the recorded LLaVA-1.5 checkpoint, runs and prompts."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llava.mm_utils import load_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "ckpt" / "llava-v1.5-tiny"
RECORD = json.loads((GOLDEN / "llava15.json").read_text(encoding="utf-8"))
IMAGE_START, IMAGE_TOKENS = 35, 576
DART = RECORD["runs"]["dart128-sdpa"]["DART_config"]


@functools.cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "llava15.safetensors")


def loaded(attention: str = "sdpa", dtype: str = "float32") -> tuple[Any, Any, Any, int]:
    """(tokenizer, model, image_processor, context_len); shared, so a test leaves `DART_config` as it found it."""
    return _loaded(attention, dtype)


@functools.cache
def _loaded(attention: str, dtype: str) -> tuple[Any, Any, Any, int]:
    return load_pretrained_model(
        str(CHECKPOINT), None, "tiny", device="cpu", attn_implementation=attention, torch_dtype=dtype
    )


def sample(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids [1, S], pixel values [1, 3, 336, 336]) of a recorded sample through our own preprocessing."""
    tokenizer, model, processor, _ = loaded()
    record = RECORD["samples"][name]
    image = load_image(str(GOLDEN / "images" / f"{record['image']}.png"))
    ids = tokenizer_image_token(record["prompt"], tokenizer, return_tensors="pt")
    return ids[None], process_images([image], processor, model.config)


def cache_lengths(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]
