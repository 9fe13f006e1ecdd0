"""LLaVA and its kin: a CLIP-like tower, a projector, a Llama-like decoder."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import torch
from transformers import CONFIG_MAPPING

from . import IMAGE, PATCH, SIZE, VIDEO, Case, Picture, argument, family, skip, square, tiny

EDGE = SIZE // PATCH
PATCHES = EDGE * EDGE
FRAMES = 2
# (height, width) of the images of a row: 2, 2 and 4 tiles of SIZE pixels, without any padding to cut off.
SIZES = [(SIZE, 2 * SIZE), (2 * SIZE, SIZE), (2 * SIZE, 2 * SIZE)]
PINPOINTS = [list(size) for size in SIZES]


def tiles(number, generator):
    """An overview and its tiles; each row of the tiles' patches ends with a newline token."""
    height, width = SIZES[number % len(SIZES)]
    rows, columns = height // PATCH, width // PATCH
    pixels = torch.randn(1, 1 + height * width // SIZE**2, 3, SIZE, SIZE, generator=generator)
    tensors = {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    return Picture([IMAGE] * (PATCHES + rows * (columns + 1)), tensors)


def frames(tokens):
    def video(number, generator):
        pixels = torch.randn(1, FRAMES, 3, SIZE, SIZE, generator=generator)
        return Picture([VIDEO] * tokens, {"pixel_values_videos": pixels}, kind=2)

    return video


@family("llava")
def llava(name, attention):
    return Case(model=tiny(name, attention), image=square(PATCHES))


@family("vipllava")
def vipllava(name, attention):
    """Features of several tower layers side by side."""
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[name])}
    layers = next(each for each in ("vision_feature_layer", "vision_feature_layers") if each in fields)
    return Case(model=tiny(name, attention, **{layers: [-2, 1]}), image=square(PATCHES))


@family("llava_next", "llava_next_video")
def llava_next(name, attention):
    model = tiny(name, attention, image_grid_pinpoints=PINPOINTS)
    video = frames(FRAMES * PATCHES // 4) if name == "llava_next_video" else None  # 2 x 2 patches per token
    return Case(model=model, image=tiles, video=video)


@family("llava_onevision")
def llava_onevision(name, attention):
    model = tiny(name, attention, image_grid_pinpoints=PINPOINTS)
    video = frames(FRAMES * (EDGE // 2) ** 2 + 1)  # 2 x 2 patches per token and one newline
    return Case(model=model, image=tiles, video=video)


@family("video_llava")
def video_llava(name, attention):
    model = tiny(name, attention)
    pixels = argument(model, "pixel_values", "pixel_values_images")
    return Case(model=model, image=square(PATCHES, name=pixels), video=frames(FRAMES * (PATCHES + 1)))


@family("internvl")
def internvl(name, attention):
    return Case(model=tiny(name, attention), image=square(PATCHES // 4))


if find_spec("timm"):

    @family("fast_vlm")
    def fast_vlm(name, attention):
        """The tower is a convolutional one of timm: 2 x 2 features of 96 channels from 64 pixels."""
        vision = {"architecture": "test_resnet", "model_args": None, "hidden_size": 96}
        return Case(model=tiny(name, attention, vision_config=vision), image=square(4, size=64))

else:
    skip("its vision tower, FastViT, needs the package timm, which is not installed", "fast_vlm")


@family("aria")
def aria(name, attention):
    model = tiny(name, attention, projector_patch_to_query_dict={PATCHES: 9}, text_config={"moe_num_experts": 4})
    return Case(model=model, image=square(9))


@family("aya_vision", "cohere2_vision")
def cohere(name, attention):
    model = tiny(name, attention, text_config={"logit_scale": 1.0})
    return Case(model=model, image=square(PATCHES // 4))


@family("deepseek_vl")
def deepseek_vl(name, attention):
    return Case(model=tiny(name, attention), image=square(PATCHES))
