"""Mistral's models: Pixtral's tower takes images of any size, two by two patches of it are one token."""

from __future__ import annotations

import torch

from . import IMAGE, PATCH, Case, Picture, family, tiny

BREAK, END_OF_IMAGE = 111, 112
SIZES = [(32, 40), (40, 16), (32, 32)]  # pixels (height, width) of the images of a row


def rows(number, generator):
    """Each row of the image's tokens ends with a break, the image with an end: image tokens do not lie side by side."""
    height, width = SIZES[number % len(SIZES)]
    ids = ([IMAGE] * (width // PATCH // 2) + [BREAK]) * (height // PATCH // 2)
    tensors = {"pixel_values": torch.randn(1, 3, height, width, generator=generator)}
    return Picture([*ids[:-1], END_OF_IMAGE], tensors | {"image_sizes": torch.tensor([[height, width]])})


@family("mistral3")
def mistral3(name, attention):
    return Case(model=tiny(name, attention), image=rows, contiguous=False)
