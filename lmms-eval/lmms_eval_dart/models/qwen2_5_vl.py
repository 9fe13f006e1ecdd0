"""`qwen2_5_vl_dart`: lmms-eval's qwen2_5_vl with DART, its chat class (the default) and its simple one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as Qwen2_5_VLChat
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL

from lmms_eval_dart.models.base import DOC_TO_MESSAGES, Pruned, cut, replaced
from lmms_eval_dart.visuals import checked_messages

GENERATION_KWARGS = 2  # its place in a chat model's request
PARAGRAPH = "\n\n"  # lmms-eval's default stop, which its simple qwen2_5_vl does not obey: answers may have paragraphs


class _Qwen2_5(Pruned):
    ratio_first = True

    def _rename(self, given: dict[str, Any]) -> dict[str, Any]:
        """`use_flash_attention_2` of the research code's scripts is `attn_implementation` here."""
        rest = {name: value for name, value in given.items() if name != "use_flash_attention_2"}
        if given.get("use_flash_attention_2") is True:
            rest.setdefault("attn_implementation", "flash_attention_2")
        return rest


class Qwen2_5VLDart(_Qwen2_5, Qwen2_5_VL):
    """`--force_simple`."""


class Qwen2_5VLDartChat(_Qwen2_5, Qwen2_5_VLChat):
    """Modifications beside `Pruned`'s: `until` ends an answer and a `system_prompt` that is given is used (the stock
    chat class takes neither into account).
    """

    def _checked(self, arguments: tuple) -> tuple:
        checked = partial(checked_messages, system=self._given.get("system_prompt"), handle=self.dart_handle)
        return replaced(arguments, DOC_TO_MESSAGES, checked)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """As the stock model's, cut at `until`."""
        answers = super().generate_until(requests)
        stops = [each.arguments[GENERATION_KWARGS].get("until") for each in requests]
        return [
            dataclasses.replace(answer, text=cut(answer.text, until, PARAGRAPH))
            for answer, until in zip(answers, stops, strict=True)
        ]
