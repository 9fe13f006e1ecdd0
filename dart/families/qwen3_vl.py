"""Qwen3-VL: transformers' `Qwen3VLForConditionalGeneration`.

What differs from Qwen2.5-VL: timestamps stand between the frames of a video, so that each frame (two pictures in time)
is a span of its own; and DeepStack: features of several depths of the vision tower are added to the visual tokens after
the decoder's first layers. Tokens are dropped behind the last of these.
"""

from __future__ import annotations

from typing import Any

from dart.families.base import Placeholders, register


@register("qwen3-vl")
class Qwen3VL(Placeholders):
    """model_type `qwen3_vl`."""

    model_type = "qwen3_vl"

    def earliest_layer(self, model: Any) -> int:
        return len(model.config.vision_config.deepstack_visual_indexes)
