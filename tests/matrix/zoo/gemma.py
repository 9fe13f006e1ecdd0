"""Gemma's models and PaliGemma: sliding and full attention in turn, image tokens that may see each other."""

from __future__ import annotations

import inspect
from importlib.util import find_spec

import torch

from . import (
    END,
    HEAD_DIM,
    IMAGE,
    LAYERS,
    PATCH,
    SIZE,
    START,
    TEXT_END,
    VIDEO,
    VOCABULARY,
    WIDTH,
    Case,
    Picture,
    family,
    skip,
    square,
    tiny,
)

EDGE = SIZE // PATCH
PATCHES = EDGE * EDGE
POOL = 3  # patches along an edge of a token of Gemma 4
GRIDS = [(12, 12), (12, 6), (9, 15)]  # Gemma 4's patches (height, width) of the images of a row


@family("gemma3", "shieldgemma2")
def gemma3(name, attention):
    tokens = PATCHES // 4
    model = tiny(name, attention, mm_tokens_per_image=tokens, boi_token_index=START, eoi_token_index=END)
    image = square(tokens, before=[START], after=[END])
    return Case(model=model, image=image, types="token_type_ids", bidirectional=True)


@family("paligemma")
def paligemma(name, attention):
    """Everything of the prompt sees everything: image and text are one prefix."""

    def prefix(inputs):
        return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}

    model = tiny(name, attention, projection_dim=WIDTH)
    counts_new_tokens = "_update_model_kwargs_for_generation" in vars(type(model))  # not yet in transformers 5.17
    known = "" if counts_new_tokens else "without a cache, generated tokens are taken for a part of the prefix"
    return Case(model=model, image=square(PATCHES), finish=prefix, bidirectional=True, known=known)


def grid(number, generator, frames=1):
    """(pixel values, patch positions (x, y), tokens per frame) of an image of Gemma 4's kind."""
    height, width = GRIDS[number % len(GRIDS)]
    pixels = torch.rand(frames, height * width, 3 * PATCH * PATCH, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([x, y], -1).reshape(1, -1, 2).repeat(frames, 1, 1)
    return pixels, positions, height * width // POOL**2


def gemma4_image(number, generator):
    pixels, positions, tokens = grid(number, generator)
    return Picture([START, *[IMAGE] * tokens, END], {"pixel_values": pixels, "image_position_ids": positions})


def gemma4_video(flat):
    """`flat`: the frames of all videos along one axis (transformers 5.24), else an axis of videos before it (5.17)."""

    def video(number, generator):
        pixels, positions, tokens = grid(number, generator, frames=2)
        if flat:
            tensors = {"pixel_values_videos": pixels, "video_position_ids": positions}
            tensors["num_frames_per_video"] = torch.tensor([2])
        else:
            tensors = {"pixel_values_videos": pixels[None], "video_position_ids": positions[None]}
        return Picture([START, *[VIDEO] * tokens, END, 50, START, *[VIDEO] * tokens, END], tensors, kind=2)

    return video


@family("gemma4", "gemma4:large")
def gemma4(name, attention):
    """The small models have inputs per layer and share keys; in the large ones an image's tokens see each other."""
    large = name.endswith("large")
    text = {"global_head_dim": 2 * HEAD_DIM}
    if large:
        text |= {"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"}
        text |= {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    else:
        text |= {"hidden_size_per_layer_input": HEAD_DIM, "vocab_size_per_layer_input": VOCABULARY}
        text |= {"num_kv_shared_layers": 2}
    vision = {"model_type": "gemma4_vision", "position_embedding_size": 16}
    model = tiny(name, attention, text_config=text, vision_config=vision)
    return Case(
        model=model,
        image=gemma4_image,
        video=gemma4_video("num_frames_per_video" in inspect.signature(model.forward).parameters),
        types="mm_token_type_ids",
        fills={"image_position_ids": -1},
        bidirectional=large,
        per_layer_inputs=not large,
    )


@family("gemma4_unified")
def gemma4_unified(name, attention):
    """No vision tower: blocks of pixels go through a projection."""

    def image(number, generator):
        height, width = 4 + number % 2, 4
        pixels = torch.rand(1, height * width, 3 * (POOL * PATCH) ** 2, generator=generator)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        tensors = {"pixel_values": pixels, "image_position_ids": torch.stack([x, y], -1).reshape(1, -1, 2)}
        return Picture([START, *[IMAGE] * (height * width), END], tensors)

    vision = {"model_type": name + "_vision", "mm_embed_dim": WIDTH, "mm_posemb_size": 16, "output_proj_dims": WIDTH}
    model = tiny(name, attention, text_config={"global_head_dim": 2 * HEAD_DIM}, vision_config=vision)
    fills = {"image_position_ids": -1}
    return Case(model=model, image=image, types="mm_token_type_ids", fills=fills, bidirectional=True)


if find_spec("timm"):

    @family("gemma3n")
    def gemma3n(name, attention):
        """Ids from TEXT_END have embedders of their own; the tower is any convolutional one of timm."""
        text = {
            "intermediate_size": 64,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.5] * 2 + [0.0] * (LAYERS - 2),
            "hidden_size_per_layer_input": HEAD_DIM,
            "vocab_size_per_layer_input": TEXT_END,
        }
        vision = {"architecture": "test_resnet", "hidden_size": 96, "vocab_offset": TEXT_END, "vocab_size": 21}
        audio = {"conf_num_hidden_layers": 1, "conf_num_attention_heads": 4, "vocab_offset": 121, "vocab_size": 7}
        model = tiny(
            name, attention, text_config=text, vision_config=vision, audio_config=audio, vision_soft_tokens_per_image=4
        )
        return Case(model=model, image=square(4, size=64), per_layer_inputs=True)

else:
    skip("its vision tower, MobileNetV5, needs the package timm, which is not installed", "gemma3n")
