"""Qwen's vision-language models: images of any size as flattened patches, 2 x 2 of them a token; three-axis positions."""

from __future__ import annotations

import torch

from . import END, IMAGE, PATCH, START, VIDEO, Case, Picture, family, tiny

GRIDS = [(4, 6), (6, 2), (4, 4)]  # patches (height, width) of the images of a row
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
PATCH_VALUES = 3 * 2 * PATCH * PATCH  # channels x frames x pixels


def patches(number, generator, values=PATCH_VALUES):
    height, width = GRIDS[number % len(GRIDS)]
    pixels = torch.randn(height * width, values, generator=generator)
    tensors = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}
    return Picture([START, *[IMAGE] * (height * width // 4), END], tensors)


def frames(number, generator, values=PATCH_VALUES):
    """A video of two (pairs of) frames of 4 x 4 patches."""
    pixels = torch.randn(2 * 4 * 4, values, generator=generator)
    tensors = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[2, 4, 4]])}
    return Picture([START, *[VIDEO] * 8, END], tensors, kind=2)


@family("qwen2_vl", "qwen2_5_vl")
def qwen2_vl(name, attention):
    model = tiny(name, attention, text_config={"rope_parameters": MROPE})
    return Case(model=model, image=patches, video=frames, types="mm_token_type_ids")
