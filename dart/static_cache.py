"""Static caches: layers from K on that are no longer than what is left, and decoding that a compiler can trace.

A static layer takes its memory when it is first written to, behind the selection: it is resized before that. A decoding
step's mask then needs tensors of the cache alone: no length is read by the host, and no shape changes from step to
step, so that `torch.compile` and CUDA graphs record it once.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, StaticLayer

OPEN = "_dart_open"  # bool [B, m] on layer K: slots that later tokens see, those that are free yet included


def is_static(cache: Cache | None) -> bool:
    return cache is not None and cache.is_compileable


def fit(cache: Any, layer: int, dropped: int) -> None:
    """Before a prefill from which `dropped` tokens go: size the layers from `layer` on for the others.

    The first `layer` ones keep the length that the caller asked for. Layers that have memory already and enough of it
    (a cache that is used again after `reset`) keep it.
    """
    if layer == 0:
        return
    for each in cache.layers[layer:]:
        needed = int(cache.layers[0].max_cache_len) - dropped
        if type(each) is not StaticLayer or (each.is_initialized and each.max_cache_len >= needed):
            continue
        each.max_cache_len, each.is_initialized = needed, False
        each.keys = each.values = None
        each.cumulative_length = torch.zeros_like(each.cumulative_length)


def remember_open(cache: Any, layer: int, mask: Any, columns: torch.Tensor, filled: int) -> None:
    """Keep what the last query of a forward sees for the steps behind it.

    mask: [B, 1, Q, m], or None for all; columns: LongTensor [B, m], what the slots hold, of which `filled` are in use.
    """
    seen = torch.ones_like(columns, dtype=torch.bool)
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
            forget_open(cache, layer)
            return
        seen = visible_to_last(mask) | (torch.arange(columns.shape[1], device=columns.device) >= filled)
    setattr(cache.layers[layer], OPEN, seen)


def forget_open(cache: Any, layer: int) -> None:
    if hasattr(cache.layers[layer], OPEN):
        delattr(cache.layers[layer], OPEN)


def step_mask(cache: Any, layer: int, mask: Any, rows: int) -> torch.Tensor | None:
    """The mask [B, 1, 1, m] of layers >= K for one more token a row, of the same kind as `mask`; None: unknown."""
    target = cache.layers[layer]
    seen = getattr(target, OPEN, None)
    if seen is None or not isinstance(mask, torch.Tensor) or mask.ndim != 4 or seen.shape[0] != rows:
        return None
    slots = torch.arange(seen.shape[1], device=seen.device)
    seen = (seen & (slots <= target.cumulative_length))[:, None, None]
    if mask.dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)


def visible_to_last(mask: torch.Tensor) -> torch.Tensor:
    """bool [B, KV]: the positions that the last query of a prepared 4-D mask sees."""
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last == 0
