"""LLaVA and its kin: a CLIP-like tower, a projector, a Llama-like decoder."""

from __future__ import annotations

from . import Case, family, square, tiny

PATCHES = 36


@family("llava", "vipllava")
def llava(name, attention):
    layers = {"vision_feature_layers": [-2, 1]} if name == "vipllava" else {}
    return Case(model=tiny(name, attention, **layers), image=square(PATCHES))
