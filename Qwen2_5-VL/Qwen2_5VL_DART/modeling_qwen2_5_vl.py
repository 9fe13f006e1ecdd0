"""transformers' Qwen2.5-VL that reads `model.config.DART_config`."""

from __future__ import annotations

import transformers

from dart.compat import QwenConfigSwitch


class Qwen2_5_VLForConditionalGeneration(QwenConfigSwitch, transformers.Qwen2_5_VLForConditionalGeneration):
    """`model.config.DART_config = {...}` prunes, `None` or `Sparse: False` does not; everything else is transformers'.

    The dictionary is the research code's: K, reduction_ratio (the budget here, also beside max_num_trunction),
    pivot_image_token, pivot_text_token. Where the pictures are is read from each input, so image_token_start_index and
    image_token_length may be stale.
    """
