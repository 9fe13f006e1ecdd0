"""What the LLaVA-NeXT tests share: the recorded LLaVA-1.6 checkpoint, runs and prompts."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from llava_golden import GOLDEN
from safetensors.torch import load_file

from llava.mm_utils import load_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

CHECKPOINT = GOLDEN / "ckpt" / "llava-v1.6-vicuna-tiny"
RECORD = json.loads((GOLDEN / "llava16.json").read_text(encoding="utf-8"))
RUNS = RECORD["runs"]
IMAGE_START = 35
DART = RUNS["dart320-sdpa"]["DART_config"]


@functools.cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "llava16.safetensors")


@functools.cache
def loaded(attention: str = "sdpa", dtype: str = "float32") -> tuple[Any, Any, Any, int]:
    """(tokenizer, model, image_processor, context_len); shared, so a test leaves `DART_config` as it found it."""
    return load_pretrained_model(
        str(CHECKPOINT), None, "tiny", device="cpu", attn_implementation=attention, torch_dtype=dtype
    )


def sample(name: str) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """(input_ids [1, S], pixel values [1, 1 + tiles, 3, 336, 336], image_sizes) through our own preprocessing."""
    tokenizer, model, processor, _ = loaded()
    record = RECORD["samples"][name]
    image = load_image(str(GOLDEN / "images" / f"{record['image']}.png"))
    ids = tokenizer_image_token(record["prompt"], tokenizer, return_tensors="pt")
    return ids[None], process_images([image], processor, model.config), [image.size]
