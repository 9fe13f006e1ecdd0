"""`qwen2_vl_dart`: lmms-eval's qwen2_vl with DART."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.simple.qwen2_vl import Qwen2_VL

from lmms_eval_dart.models.base import Pruned


class Qwen2VLDart(Pruned, Qwen2_VL):
    """Modifications beside `Pruned`'s: batches are padded on the left, as decoding needs it (the stock model pads as
    the checkpoint's tokenizer does). `reduction_ratio` is the budget, also beside `max_num_trunction`.
    """

    ratio_first = True

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.processor.tokenizer.padding_side = "left"
