"""Qwen2-VL with DART in place, under the research code's import name."""

from Qwen2VL_DART.modeling_qwen2_vl import Qwen2VLForConditionalGeneration

__all__ = ["Qwen2VLForConditionalGeneration"]
