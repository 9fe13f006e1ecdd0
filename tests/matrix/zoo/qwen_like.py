"""Qwen's models: images of any size as flattened patches, 2 x 2 of them per token; positions with three axes."""

from __future__ import annotations

import torch

from . import END, IMAGE, PATCH, START, VIDEO, Case, Picture, family, tiny

GRIDS = [(4, 6), (6, 2), (4, 4)]  # patches (height, width) of the images of a row
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
INTERLEAVED = MROPE | {"mrope_interleaved": True}
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


def timestamped(number, generator, values=PATCH_VALUES):
    """The same video, each frame a group of its own with text before it."""
    one = frames(number, generator, values)
    one.ids = [START, *[VIDEO] * 4, END, 50, START, *[VIDEO] * 4, END]
    return one


@family("qwen2_vl", "qwen2_5_vl")
def qwen2_vl(name, attention):
    model = tiny(name, attention, text_config={"rope_parameters": MROPE})
    return Case(model=model, image=patches, video=frames, types="mm_token_type_ids")


@family("qwen2_5_omni_thinker")
def qwen2_5_omni(name, attention):
    def timed(number, generator):
        one = frames(number, generator)
        one.tensors["video_second_per_grid"] = torch.tensor([1.0])
        return one

    model = tiny(name, attention, text_config={"rope_parameters": MROPE}, vision_start_token_id=START)
    return Case(model=model, image=patches, video=timed, decoder="model.language_model")


@family("qwen3_vl", "qwen3_vl_moe")
def qwen3_vl(name, attention):
    rope, deepstack = {"rope_parameters": INTERLEAVED}, {"deepstack_visual_indexes": [0, 1]}
    model = tiny(name, attention, text_config=rope, vision_config=deepstack)
    return Case(model=model, image=patches, video=timestamped, types="mm_token_type_ids", deepstack=True)


@family("qwen3_5", "qwen3_5_moe")
def qwen3_5(name, attention):
    """Every other decoder layer is linear attention; rotary angles cover half of a head."""
    text = {"head_dim": 16, "rope_parameters": INTERLEAVED | {"partial_rotary_factor": 0.5}}
    model = tiny(name, attention, text_config=text)
    return Case(model=model, image=patches, video=timestamped, types="mm_token_type_ids")
