"""LLaVA-OneVision: transformers' `LlavaOnevisionForConditionalGeneration`.

What differs from LLaVA: videos beside pictures, and tiles whose tokens follow those of the overview and are merged row
by row. A picture with all its tiles, or a video with all its frames, is one span.
"""

from __future__ import annotations

from dart.families.base import Placeholders, register


@register("llava-onevision")
class LlavaOnevision(Placeholders):
    """model_type `llava_onevision`."""

    model_type = "llava_onevision"
