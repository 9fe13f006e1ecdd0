"""Granite's vision models: features of several tower layers are added at several decoder layers."""

from __future__ import annotations

import torch

from . import IMAGE, SIZE, Case, Picture, family, tiny
from .llava_like import PINPOINTS, SIZES, tiles

SIDE = 3  # tokens along an edge of a tile
TOWER = 64  # width; newer releases give the Q-Former a head per 64


@family("granite4_vision")
def granite4_vision(name, attention):
    def image(number, generator):
        height, width = SIZES[number % len(SIZES)]
        rows, columns = height // SIZE * SIDE, width // SIZE * SIDE
        return Picture([IMAGE] * (SIDE**2 + rows * (columns + 1)), tiles(number, generator).tensors)

    model = tiny(
        name,
        attention,
        vision_config={"model_type": "clip_vision_model", "hidden_size": TOWER},
        qformer_config={"hidden_size": TOWER, "num_attention_heads": 1, "encoder_hidden_size": TOWER},
        text_config={"model_type": "granite4_vision_text", "num_hidden_layers": 8},
        image_grid_pinpoints=PINPOINTS,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1, 2, 3, 4],
    )
    note = "the placeholders' embeddings are set to 0: all visual features are added before decoder layers 0 to 4"
    return Case(model=model, image=image, deepstack=True, note=note)


@family("granite_docling")
def granite_docling(name, attention):
    def image(number, generator):
        tensors = {
            "pixel_values": torch.randn(1, 1, 3, SIZE, SIZE, generator=generator),
            "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
        }
        return Picture([IMAGE] * SIDE**2, tensors)

    vision = {"scale_factor": 2, "deepstack_visual_indexes": [0, 1]}
    model = tiny(name, attention, vision_config=vision)
    axes = {"pixel_values": (1, 0), "pixel_attention_mask": (1, 0)}
    return Case(model=model, image=image, axes=axes, decoder="model.text_model", deepstack=True)
