"""What a model's caches were pruned to: which unpruned position each slot of the shortened layers holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache

from dart.masks import PADDING


@dataclass
class Kept:
    """What the slots of the shortened layers hold, after a forward that was pruned or behind one.

    slots: LongTensor [B, m], the unpruned position of each slot that the last pruned forward left; full: unpruned
    length; tail: how many tokens came since, of which nothing was dropped.
    last_position: at K = 0, the position that the first sample's last token has for the rotary embedding (a scalar).
    """

    slots: torch.Tensor
    full: int
    padded: bool
    tail: int = 0
    last_position: torch.Tensor | None = None

    @property
    def columns(self) -> torch.Tensor:
        """LongTensor [B, m + tail]: the unpruned position of each slot."""
        if self.tail == 0:
            return self.slots
        tail = torch.arange(self.full - self.tail, self.full, device=self.slots.device)
        return torch.cat([self.slots, tail.expand(len(self.slots), -1)], 1)

    def followed_by(self, tokens: int) -> Kept:
        """With `tokens` more, all of which stay; no tensor is touched."""
        return Kept(self.slots, self.full + tokens, self.padded, self.tail + tokens)


class CacheStates:
    """The state of every live cache that a pruned prefill went into; a cache that is gone takes its state along."""

    def __init__(self) -> None:
        self._states: WeakKeyDictionary[Cache, Kept] = WeakKeyDictionary()

    def find(self, cache: Cache | None) -> Kept | None:
        """The state as it was left."""
        return None if cache is None else self._states.get(cache)

    def of(self, cache: Cache | None, past: int, size: int) -> Kept | None:
        """The state for a forward of `size` rows behind `past` unpruned positions; None for a cache without one."""
        state = self.find(cache)
        if cache is None or state is None:
            return None
        if past == 0:  # the cache was reset or filled anew
            del self._states[cache]
            return None
        if past > state.full:  # steps that did not look: see `dart.static_cache`
            state = state.followed_by(past - state.full)
        elif past < state.full:  # the cache was cropped
            columns = state.columns
            state = Kept(columns[:, (columns < past).any(0)], past, state.padded)
        if len(state.slots) != size:
            repeated = state.slots.repeat_interleave(size // len(state.slots), 0)
            state = Kept(repeated, state.full, state.padded, state.tail)
        return state

    def advance(
        self,
        cache: Cache | None,
        state: Kept | None,
        rows: torch.Tensor | None,
        past: int,
        hidden: torch.Tensor,
        ragged: bool,
    ) -> Kept:
        """The state with this forward's tokens (`hidden` [B, S, D], of which `rows` [B, n] stay) appended."""
        size, length = hidden.shape[:2]
        if state is not None and rows is None:
            after = state.followed_by(length)
            if cache is not None:
                self._states[cache] = after
            return after
        slots = torch.arange(length, device=hidden.device).expand(size, -1) if rows is None else rows
        if past:
            old = torch.arange(past, device=hidden.device).expand(size, -1) if state is None else state.columns
            slots = torch.cat([old, torch.where(slots < 0, slots, slots + past)], 1)
        after = Kept(slots, past + length, bool(state and state.padded) or ragged)
        if cache is not None:
            self._states[cache] = after
        return after


def with_free_slots(columns: torch.Tensor, cache: Cache | None, layer: int) -> torch.Tensor:
    """`columns` [B, m] with PADDING up to the fixed length of a static cache's layer."""
    if cache is None or not cache.is_compileable:
        return columns
    static: Any = cache.layers[layer]
    return nn.functional.pad(columns, (0, int(static.max_cache_len) - columns.shape[1]), value=PADDING)
