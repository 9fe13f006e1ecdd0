"""Qwen2-VL: transformers' `Qwen2VLForConditionalGeneration` and its subclasses.

What differs: pictures and videos each have a placeholder id of their own. Positions are three-dimensional (M-RoPE); the
decoder layers are given their rotary embeddings, ready made, so that a kept token keeps its three positions.
"""

from __future__ import annotations

from dart.families.base import Placeholders, register


@register("qwen2-vl")
class Qwen2VL(Placeholders):
    """model_type `qwen2_vl`."""

    model_type = "qwen2_vl"
