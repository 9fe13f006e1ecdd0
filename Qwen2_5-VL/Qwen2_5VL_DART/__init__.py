"""Qwen2.5-VL with DART in place, under the research code's import name."""

from Qwen2_5VL_DART.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

__all__ = ["Qwen2_5_VLForConditionalGeneration"]
