"""Models by shape, with random weights: time depends on sizes, not on what was learned.

transformers' classes of LLaVA, Qwen2-VL and Qwen2.5-VL, so that what is timed is the code that users run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
)

CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
STAND_IN_TOWER = CLIP_LARGE_336 | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
TINY_TOWER = STAND_IN_TOWER | {"image_size": 112, "num_hidden_layers": 2}
QWEN_TOWER = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_SECTIONS = [16, 24, 24]
QWEN_THETA = 1e6
QWEN_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
COLOURS = 3


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its usual prompt.

    family: transformers' model_type. images: images, or views of one image (LLaVA-NeXT), of `side` pixels;
    text_before, text_after: text tokens around them; between: text tokens between two images (LLaVA), which tell a
    method where each one ends; keep: the budgets measured by default.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tower: dict[str, Any]
    side: int = 336
    images: int = 1
    text_before: int = 35
    text_after: int = 35
    between: int = 0
    keep: tuple[int | float, ...] = (192, 128, 64)
    note: str = ""


VICUNA_7B = Shape("llava", 4096, 32, 32, 32, 11008, 32064, CLIP_LARGE_336)
QWEN_7B: dict[str, Any] = {
    "hidden": 3584,
    "layers": 28,
    "heads": 28,
    "kv_heads": 4,
    "intermediate": 18944,
    "vocabulary": 152064,
    "side": 1008,
    "text_before": 15,
    "keep": (0.333, 0.222, 0.111),
}
SHAPES: dict[str, Shape] = {
    "llava-1.5-7b": VICUNA_7B,
    "llava-1.5-13b": Shape("llava", 5120, 40, 40, 40, 13824, 32064, CLIP_LARGE_336),
    "llava-next-7b": replace(
        VICUNA_7B,
        images=5,
        keep=(640, 320, 160),
        note="five views without newline tokens, the 2880 tokens of the paper",
    ),
    "qwen2-vl-7b": Shape(
        "qwen2_vl", **QWEN_7B, tower=QWEN_TOWER | {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584}
    ),
    "qwen2.5-vl-7b": Shape(
        "qwen2_5_vl",
        **QWEN_7B,
        tower=QWEN_TOWER
        | {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
    ),
    "decoder-135m": Shape(
        "llava",
        576,
        30,
        9,
        3,
        1536,
        49152,
        STAND_IN_TOWER,
        images=5,
        keep=(320,),
        note="the vision tower is one small layer, a stand-in: only the decoder's phases mean anything",
    ),
    "tiny": Shape("llava", 64, 4, 4, 2, 128, 512, TINY_TOWER, side=112, images=4, keep=(64, 32, 16)),
}


@dataclass
class Workload:
    """A model and the inputs of one prompt. length, visual_tokens: of a row, as the decoder sees it."""

    model: Any
    inputs: dict[str, Any]
    batch: int
    length: int
    visual_tokens: int


def config_of(shape: Shape) -> PreTrainedConfig:
    """The transformers config of a shape."""
    text: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 32768,
    }
    if shape.family == "llava":
        parts: dict[str, Any] = {"text_config": LlamaConfig(**text), "vision_config": CLIPVisionConfig(**shape.tower)}
        return LlavaConfig(**parts, image_token_index=shape.vocabulary - 1)
    rope = {"rope_type": "default", "mrope_section": QWEN_SECTIONS, "rope_theta": QWEN_THETA}
    kind: Any = {"qwen2_vl": Qwen2VLConfig, "qwen2_5_vl": Qwen2_5_VLConfig}[shape.family]
    return kind(text_config=text | {"rope_parameters": rope}, vision_config=shape.tower, **QWEN_IDS)


def build(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
    """A model of that shape with random weights, made where it will run."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(config_of(shape), dtype=dtype, attn_implementation=attention)
    return model.eval()


def workload(shape: Shape, model: Any, batch: int) -> Workload:
    """Random images and words for `model`, a model of that shape; every row of the batch has images of its own."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    patches = (shape.side // config.vision_config.patch_size) ** 2
    if shape.family == "llava":
        each = patches
        pixels = torch.randn(batch * shape.images, COLOURS, shape.side, shape.side, generator=generator)
        more: dict[str, torch.Tensor] = {}
        start: list[int] = []
        gap = [shape.vocabulary // 2] * shape.between
    else:
        tower = config.vision_config
        each = patches // tower.spatial_merge_size**2
        width = COLOURS * tower.temporal_patch_size * tower.patch_size**2
        pixels = torch.randn(batch * shape.images * patches, width, generator=generator)
        grid = [1, shape.side // tower.patch_size, shape.side // tower.patch_size]
        more = {"image_grid_thw": torch.tensor([grid] * (batch * shape.images))}
        start, gap = [config.vision_start_token_id], []
    row = torch.tensor((start + [config.image_token_id] * each + gap) * shape.images)[: -len(gap) or None]
    words = torch.randint(3, shape.vocabulary // 2, (batch, shape.text_before + shape.text_after), generator=generator)
    before, after = words.split([shape.text_before, shape.text_after], 1)
    ids = torch.cat([before, row.expand(batch, -1), after], 1)
    if shape.family != "llava":
        more["mm_token_type_ids"] = (ids == config.image_token_id).int()
    device, dtype = model.device, model.dtype
    inputs = {"input_ids": ids, "pixel_values": pixels.to(dtype), **more}
    inputs = {key: value.to(device) for key, value in inputs.items()}
    return Workload(model, inputs, batch, ids.shape[1], each * shape.images)
