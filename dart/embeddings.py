"""K = 0: tokens are dropped before the first layer, by the norms of their embeddings (there are no keys yet)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from dart.cache_states import Kept, with_free_slots
from dart.masks import gather_mask, gather_tokens

if TYPE_CHECKING:
    from dart.pruner import PruneHandle


def prune_embeddings(handle: PruneHandle, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The decoder's arguments for a shorter input; positions go on from the unpruned length."""
    kwargs = _without_cached(handle, kwargs)
    embeds, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
    size, length = embeds.shape[:2]
    past = _past(handle, cache)
    state = handle.states.of(cache, past, size)
    rows = None
    if handle.spans is not None and length > 1:
        rows = handle.choose_rows(embeds, embeds[:, None], past)
    handle.spans = None
    if rows is None and state is None:
        return kwargs
    if cache is None and _wants_cache(handle, kwargs):
        # Made here, not by the decoder, so that what it was pruned to is remembered beside it.
        cache = kwargs["past_key_values"] = DynamicCache(config=handle.decoder.config)
    after = handle.states.advance(cache, state, rows, past, embeds, handle.ragged)
    positions = _positions(handle, kwargs, cache, past)
    after.last_position = _last(positions)
    mask = _mask(kwargs.get("attention_mask"), rows, after, cache, past, embeds)
    if rows is not None:
        embeds, positions = gather_tokens(embeds, rows, -2), gather_tokens(positions, rows, -1)
    return {**kwargs, "input_ids": None, "inputs_embeds": embeds, "position_ids": positions, "attention_mask": mask}


def _wants_cache(handle: PruneHandle, kwargs: dict[str, Any]) -> bool:
    asked = kwargs.get("use_cache")
    return bool(getattr(handle.decoder.config, "use_cache", False) if asked is None else asked)


def _positions(handle: PruneHandle, kwargs: dict[str, Any], cache: Cache | None, past: int) -> torch.Tensor:
    """LongTensor [..., B, S]: the caller's, else counted from the unpruned length."""
    positions, length = kwargs.get("position_ids"), kwargs["inputs_embeds"].shape[1]
    if positions is None:
        return (torch.arange(length, device=kwargs["inputs_embeds"].device) + past)[None]
    if handle.positions_given or cache is None:
        return positions
    # The model made them itself (M-RoPE), going on from the cache's slots, of which there are fewer.
    return positions + (past - int(cache.get_seq_length(0)))


def _last(positions: torch.Tensor) -> torch.Tensor:
    """The first sample's last position; of several axes (M-RoPE) the last one, on which text agrees with the others."""
    return positions.flatten(0, -3)[-1][0, -1] if positions.ndim > 2 else positions[0, -1]


def _past(handle: PruneHandle, cache: Cache | None) -> int:
    """Unpruned positions before this forward's."""
    stored = 0 if cache is None else int(cache.get_seq_length(0))
    known = handle.states.find(cache)
    return known.full if known is not None and stored else stored


def _without_cached(handle: PruneHandle, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with embeddings, and without tokens that the cache has dropped.

    `generate` on a reused cache cuts what the cache holds off the conversation. It counts the slots, of which K = 0
    leaves fewer than there were tokens; how long the conversation is tells the difference.
    """
    embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
    if embeds is None:
        embeds = handle.decoder.embed_tokens(kwargs["input_ids"])
    kwargs = {**kwargs, "input_ids": None, "inputs_embeds": embeds}
    known = handle.states.find(cache)
    if cache is None or known is None:
        return kwargs
    stored, length = int(cache.get_seq_length(0)), embeds.shape[1]
    surplus = known.full - stored
    if not 0 < surplus < length or _unseen(handle, kwargs, known) != length - surplus:
        return kwargs
    if handle.spans is not None:
        handle.spans = handle.spans[:, surplus:]
    replace = {name: kwargs[name][..., surplus:] for name in ("position_ids",) if kwargs.get(name) is not None}
    return {**kwargs, **replace, "inputs_embeds": embeds[:, surplus:]}


def _unseen(handle: PruneHandle, kwargs: dict[str, Any], known: Kept) -> int | None:
    """How many of this forward's tokens the cache was never given, as the mask or the caller's positions tell it."""
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return mask.shape[1] - known.full
    if positions is None or known.last_position is None or not handle.positions_given:
        return None
    return int(_last(positions) - known.last_position)


def _mask(
    mask: torch.Tensor | None,
    rows: torch.Tensor | None,
    after: Kept,
    cache: Cache | None,
    past: int,
    embeds: torch.Tensor,
) -> torch.Tensor | None:
    size, length = embeds.shape[:2]
    if mask is None and (after.padded or rows is not None):
        # Without a mask, transformers reads the gaps in the positions as several packed sequences.
        mask = torch.ones(size, after.full, dtype=torch.long, device=embeds.device)
    if mask is None:
        return None
    if mask.ndim == 2:
        return gather_mask(mask, torch.empty(0), after.columns, past, after.padded, None)
    columns = with_free_slots(after.columns, cache, 0)
    if rows is None and columns.shape[1] == mask.shape[-1]:
        # Made by `generate` for the cache as it is, already shortened; only the empty slots are missing in it.
        columns = torch.where(columns < 0, columns, torch.arange(columns.shape[1], device=columns.device))
    queries = torch.arange(length, device=embeds.device).expand(size, -1) if rows is None else rows
    return gather_mask(mask, queries, columns, past, after.padded, None)
