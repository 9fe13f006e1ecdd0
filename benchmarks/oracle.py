"""The ceiling: the same kept tokens, known beforehand. What is left is gathering them and the shorter layers."""

from __future__ import annotations

from typing import Any

import torch

import dart
from benchmarks.shapes import Workload
from dart.engine.layers import cache_of
from dart.engine.layout import fit, is_static
from dart.report import PruneReport


def kept_rows(work: Workload, config: dart.DartConfig) -> tuple[torch.Tensor, PruneReport]:
    """LongTensor [B, n] of the positions, text and visual, that DART keeps of this prompt, and its report.

    Raises ValueError when nothing would be dropped or the rows keep different numbers of tokens.
    """
    with torch.inference_mode(), dart.prune(work.model, config) as handle:
        work.model(**work.inputs, use_cache=False, logits_to_keep=1)
        report = handle.last
    if report is None or report.rows is None or report.tokens_after == report.tokens_before:
        raise ValueError(f"a budget of {config.keep} drops none of {work.visual_tokens} visual tokens: keep fewer")
    if bool((report.rows < 0).any()):
        raise ValueError("the rows of the prompt keep different numbers of tokens: the oracle needs equal ones")
    return report.rows, report


class Oracle:
    """Hooks of its own, apart from the pruner's: layer K gathers the given rows, nothing is computed to find them.

    decoder: the text model; rows: LongTensor [B, n] of `length` positions. The gathered rotary embeddings and masks are
    kept from the first prefill on: use it for one prompt, and warm it up.
    """

    def __init__(self, decoder: Any, layer: int, rows: torch.Tensor, length: int):
        self._layer, self._layers = layer, list(decoder.layers)[layer:]
        self.rows, self.length, self.dropped = rows, length, length - rows.shape[1]
        self._given: dict[str, Any] = {}
        self._hooks: list[Any] = []

    def attach(self) -> Oracle:
        first, *later = self._layers
        self._hooks = [first.register_forward_pre_hook(self._gather, with_kwargs=True)]
        self._hooks += [each.register_forward_pre_hook(self._shorten, with_kwargs=True) for each in later]
        return self

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _gather(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0]
        if hidden.shape[1] == self.length:
            index = self.rows[..., None].expand(-1, -1, hidden.shape[-1])
            args = (hidden.gather(1, index), *args[1:])
            cache = cache_of(kwargs)
            for each in cache.layers[self._layer :] if is_static(cache) else ():
                each.full_length = cache.layers[0].max_cache_len
                fit(each, self.dropped)
        return self._shorten(module, args, kwargs)

    def _shorten(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = kwargs.get("attention_mask")
        if args[0].shape[1] == 1:  # decoding: every slot that is left is seen
            return args, kwargs if mask is None else {**kwargs, "attention_mask": mask[..., self.dropped :]}
        if not self._given:
            cos, sin = kwargs["position_embeddings"]
            self._given = {
                "position_embeddings": (self._pick(cos), self._pick(sin)),
                "position_ids": None,
                "attention_mask": mask,
            }
            if mask is not None:
                full = mask.expand(len(self.rows), -1, -1, -1)
                free = torch.arange(self.length, mask.shape[-1], device=mask.device)  # slots of a static cache
                picked = [each[:, row][:, :, torch.cat([row, free])] for each, row in zip(full, self.rows, strict=True)]
                self._given["attention_mask"] = torch.stack(picked)
        return args, {**kwargs, **self._given}

    def _pick(self, angles: torch.Tensor) -> torch.Tensor:
        """[..., B or 1, S, h] -> [..., B, n, h]."""
        full = angles.expand(*angles.shape[:-3], len(self.rows), *angles.shape[-2:])
        return torch.stack([full[..., k, row, :] for k, row in enumerate(self.rows)], -3)
