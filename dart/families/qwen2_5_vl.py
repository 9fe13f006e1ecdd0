"""Qwen2.5-VL: transformers' `Qwen2_5_VLForConditionalGeneration` and its subclasses.

What differs from Qwen2-VL lies before the decoder (window attention in the vision tower, video positions in seconds)
and is left alone: the tower's own layers are never touched, and the positions arrive ready made.
"""

from __future__ import annotations

from dart.families.base import Placeholders, register


@register("qwen2.5-vl")
class Qwen25VL(Placeholders):
    """model_type `qwen2_5_vl`."""

    model_type = "qwen2_5_vl"
