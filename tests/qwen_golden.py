"""What the Qwen tests share: the recorded checkpoints, and inputs made without torchvision."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from Qwen2_5VL_DART import Qwen2_5_VLForConditionalGeneration
from Qwen2VL_DART import Qwen2VLForConditionalGeneration
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

GOLDEN = Path(__file__).parent / "golden"
CLASSES = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
CHECKPOINTS = {"qwen2_vl": "qwen2-vl-tiny", "qwen2_5_vl": "qwen2.5-vl-tiny"}
FAMILIES = tuple(CLASSES)
RECORDS = {family: json.loads((GOLDEN / f"{family}.json").read_text(encoding="utf-8")) for family in FAMILIES}
IMAGE, VIDEO, VISION_START, VISION_END, PAD = 342, 343, 339, 340, 329
TEXT_TOKENS = 320  # ids below are plain text
NO_END = 352  # beyond the vocabulary: decoding does not stop at an end token


@functools.cache
def tensors(family: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{family}.safetensors")


@functools.cache
def loaded(family: str, attention: str = "sdpa", dtype: str = "float32") -> Any:
    """The recorded model; shared, so a test leaves `DART_config` as it found it."""
    folder = GOLDEN / "ckpt" / CHECKPOINTS[family]
    kind: Any = CLASSES[family]
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention).eval()


@functools.cache
def readers(family: str) -> tuple[Any, Any]:
    """(tokenizer, PIL image processor): torchvision resizes a little differently from the recorded processor."""
    folder = GOLDEN / "ckpt" / CHECKPOINTS[family]
    return AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)


def with_types(ids: torch.Tensor, **visual: torch.Tensor) -> dict[str, torch.Tensor]:
    """The model's inputs for ids [B, S]."""
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "mm_token_type_ids": kinds, "attention_mask": torch.ones_like(ids), **visual}


def sample(family: str, name: str) -> dict[str, torch.Tensor]:
    """A recorded sample from its chat text and pictures, through tokenizer and image processor."""
    record = RECORDS[family]["samples"][name]
    tokenizer, processor = readers(family)
    pictures = [Image.open(GOLDEN / "images" / f"{each}.png").convert("RGB") for each in record["images"]]
    visual = processor(images=pictures, return_tensors="pt")
    pieces = record["chat_text"].split("<|image_pad|>")
    text = pieces[0]
    for grid, piece in zip(visual["image_grid_thw"], pieces[1:], strict=True):
        text += "<|image_pad|>" * (int(grid.prod()) // processor.merge_size**2) + piece
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    return with_types(ids, pixel_values=visual["pixel_values"], image_grid_thw=visual["image_grid_thw"])


def picture(rows: int, columns: int, seed: int, frames: int = 1) -> tuple[torch.Tensor, list[int]]:
    """(pixel values [patches, 1176], grid [frames, rows, columns]) of noise; rows and columns in patches, even."""
    noise = torch.randn(frames * rows * columns, 1176, generator=torch.Generator().manual_seed(seed))
    return noise, [frames, rows, columns]


def prompt(*parts: int | tuple[str, int, int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of one row. An int part: that many random text tokens; ("image" or "video", frames, rows, columns)."""
    random = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    pixels: dict[str, list[torch.Tensor]] = {"image": [], "video": []}
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    for number, part in enumerate(parts):
        if isinstance(part, int):
            ids += torch.randint(4, TEXT_TOKENS, (part,), generator=random).tolist()
            continue
        kind, frames, rows, columns = part
        values, grid = picture(rows, columns, 100 * seed + number, frames)
        pixels[kind].append(values)
        grids[kind].append(grid)
        token = IMAGE if kind == "image" else VIDEO
        ids += [VISION_START, *[token] * (int(np.prod(grid)) // 4), VISION_END]
    visual = {}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            visual |= {name: torch.cat(pixels[kind]), f"{kind}_grid_thw": torch.tensor(grids[kind])}
    return with_types(torch.tensor([ids]), **visual)


def batch(*rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows of `prompt`, padded on the left."""
    width = max(row["input_ids"].shape[1] for row in rows)
    joined = {}
    for name, filler in (("input_ids", PAD), ("mm_token_type_ids", 0), ("attention_mask", 0)):
        padded = [torch.nn.functional.pad(r[name], (width - r[name].shape[1], 0), value=filler) for r in rows]
        joined[name] = torch.cat(padded)
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        if parts := [row[name] for row in rows if name in row]:
            joined[name] = torch.cat(parts)
    return joined


def cache_lengths(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]
