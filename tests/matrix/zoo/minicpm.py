"""MiniCPM-V: all images' patches side by side in one strip; a Qwen3.5 decoder."""

from __future__ import annotations

import torch

from . import END, IMAGE, PATCH, START, VIDEO, Case, Picture, family, tiny

GRIDS = [(16, 24), (24, 16)]  # patches (height, width) of the images of a row; of one area, as 5.17 stacks them
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}


def strip(per_token, token=IMAGE, suffix="", kind=1):
    def image(number, generator):
        height, width = GRIDS[number % len(GRIDS)]
        pixels = torch.randn(1, 3, PATCH, height * width * PATCH, generator=generator)
        tensors = {"pixel_values" + suffix: pixels, "target_sizes" + suffix: torch.tensor([[height, width]])}
        return Picture([START, *[token] * (height * width // per_token), END], tensors, kind)

    return image


@family("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
def minicpm(name, attention):
    """16 patches per token; MiniCPM-OCR: 4."""
    per_token = 4 if name == "minicpm_ocr" else 16
    canvas = {
        "image_start_id": START,
        "image_end_id": END,
        "slice_start_id": 113,
        "slice_end_id": 114,
        "newline_id": 115,
    }
    model = tiny(
        name,
        attention,
        text_config={"head_dim": 16, "rope_parameters": ROPE},
        vision_config={"insert_layer_id": 1},
        insert_layer_id=1,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        **canvas if name == "minicpmv4_7" else {},
    )
    axes = {"pixel_values": (3, 3), "pixel_values_videos": (3, 3)}
    types = "mm_token_type_ids" if name == "minicpmv4_7" else ""
    video = strip(per_token, VIDEO, "_videos", 2)
    return Case(model=model, image=strip(per_token), video=video, types=types, axes=axes)
