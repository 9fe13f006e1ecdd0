"""Idefics and SmolVLM: a row's images lie along an axis of their own; a text model named text_model."""

from __future__ import annotations

import torch

from . import END, HEAD_DIM, HEADS, IMAGE, PATCH, SIZE, START, Case, Picture, family, square, tiny

PATCHES = (SIZE // PATCH) ** 2
LATENTS = 8


def stacked(tokens):
    def image(number, generator):
        pixels = torch.randn(1, 1, 3, SIZE, SIZE, generator=generator)
        mask = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
        return Picture([START, *[IMAGE] * tokens, END], {"pixel_values": pixels, "pixel_attention_mask": mask})

    return image


AXES = {"pixel_values": (1, 0), "pixel_attention_mask": (1, 0)}


@family("idefics2")
def idefics2(name, attention):
    """Every decoder layer is sliding attention."""
    perceiver = {"resampler_n_latents": LATENTS, "resampler_depth": 1, "resampler_n_heads": HEADS}
    perceiver |= {"resampler_head_dim": HEAD_DIM, "num_key_value_heads": 2}
    model = tiny(name, attention, perceiver_config=perceiver)
    return Case(model=model, image=stacked(LATENTS), axes=AXES, decoder="model.text_model")


@family("idefics3", "smolvlm")
def idefics3(name, attention):
    model = tiny(name, attention)
    return Case(model=model, image=stacked(PATCHES // 4), axes=AXES, decoder="model.text_model")


@family("ovis2")
def ovis2(name, attention):
    """An image is a mixture of the rows of a visual vocabulary, between indicator tokens of the same vocabulary."""
    indicators = [101, 102, 103, 104, 105]
    vision = {"vocab_size": 40, "hidden_stride": 2}
    model = tiny(name, attention, visual_indicator_token_ids=indicators, vision_config=vision)
    return Case(model=model, image=square(PATCHES // 4, before=[101], after=[105]))
