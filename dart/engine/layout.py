"""What the shortened layers of a KV cache hold: it lies in the cache's own layers and goes wherever they go.

A layer that a pruned prefill went into becomes a `PrunedLayer` of its own kind. It copies, pickles, reorders, crops and
repeats its layout with its keys. To whoever sizes attention masks it has the length of the unpruned conversation, so
that masks and positions are made as ever, and the engine picks the columns that are left.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, StaticLayer

PADDING = -1  # a slot that holds no token


@dataclass(frozen=True)
class CacheLayout:
    """slots: LongTensor [B, m], the unpruned position in each of a layer's first m slots, `PADDING` for none; in a
    static layer all slots, those that are still free with the positions that they will hold. dropped: positions that
    the layer has no slot for (unpruned length = slots in use + dropped). padded: some slots are empty.
    """

    slots: torch.Tensor
    dropped: int
    padded: bool

    def columns(self, used: int, stored: int) -> torch.Tensor:
        """LongTensor [B, stored]: the position of each of the last `stored` of `used` slots."""
        slots, known = self.slots, self.slots.shape[1]
        if used > known:
            tail = torch.arange(known + self.dropped, used + self.dropped, device=slots.device)
            slots = torch.cat([slots, tail.expand(len(slots), -1)], 1)
        return slots[:, slots.shape[1] - stored :] if stored < slots.shape[1] else slots


class PrunedLayer:
    """Before the class of a cache layer. layout: None after a reset, until the layer is pruned again.

    leads: transformers asks this layer how long the conversation is (the first layer of its kind in the cache).
    full_length: of a static layer, the length that its owner asked for.
    """

    _layer_type = None  # transformers registers layer classes by this name
    layout: CacheLayout | None
    leads: bool
    full_length: int

    def held(self) -> Any:
        """Slots in use: an int, in a static layer a tensor."""
        return super().get_seq_length()  # type: ignore[misc]

    def get_seq_length(self) -> Any:
        """What is held; of a layer that leads, the length of the unpruned conversation."""
        return self.held() + (self.layout.dropped if self.layout is not None and self.leads else 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The sizes of a mask over the unpruned conversation."""
        if self.layout is None:
            return super().get_mask_sizes(query_length)  # type: ignore[misc]
        if isinstance(self, StaticLayer):
            return self.full_length, 0
        return self.held() + self.layout.dropped + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens off the end. Raises ValueError where the rows of a batch would lose different numbers."""
        layout = self.layout
        if layout is None:
            return super().crop(tokens_to_remove)  # type: ignore[misc]
        held = int(self.held())
        full = held + layout.dropped
        gone = -tokens_to_remove if tokens_to_remove <= 0 else max(full - tokens_to_remove, 0)
        columns = layout.columns(held, held)
        lost = (columns >= full - gone).sum(1)
        count = int(lost[0])
        if bool((lost != count).any()):
            raise ValueError(f"crop({tokens_to_remove}) of a pruned cache would leave rows of different lengths")
        super().crop(-count)  # type: ignore[misc]
        if held - count < layout.slots.shape[1] and not isinstance(self, StaticLayer):
            kept = layout.slots[:, : held - count]
            self.layout = CacheLayout(kept, full - gone - kept.shape[1], layout.padded)
        elif count != gone:
            dropped = layout.dropped - (gone - count)
            slots = _extended(columns[:, : held - count], dropped, layout.slots.shape[1])
            self.layout = CacheLayout(slots, dropped, layout.padded)
        return None

    def reset(self) -> None:
        """Empty the layer, its layout included."""
        self.layout = None
        super().reset()  # type: ignore[misc]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in the order of `beam_idx`, LongTensor [B], the layout's too."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._pick(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """The rows `indices` alone, LongTensor, the layout's too."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._pick(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, the layout's too."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.layout is not None:
            rows = torch.arange(len(self.layout.slots), device=self.layout.slots.device)
            self._pick(rows.repeat_interleave(repeats))

    def _pick(self, rows: torch.Tensor) -> None:
        if self.layout is not None:
            slots = self.layout.slots
            self.layout = CacheLayout(slots[rows.to(slots.device)], self.layout.dropped, self.layout.padded)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (type(self).__mro__[2], dict(vars(self)))


@functools.cache
def _pruned_class(kind: type) -> type:
    return type(f"Pruned{kind.__name__}", (PrunedLayer, kind), {})


def _rebuild(kind: type, state: dict[str, Any]) -> Any:
    layer: Any = object.__new__(_pruned_class(kind))
    vars(layer).update(state)
    return layer


def cache_layer(cache: Any, slot: int) -> Any:
    """The cache's layer number `slot`, made now where the cache makes its layers as they come; None without a cache."""
    if cache is None:
        return None
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise ValueError(f"dart cannot prune into a {type(cache).__name__}: its layers cannot be reached")
    made = getattr(cache, "layer_class_to_replicate", None)
    while made is not None and len(layers) <= slot:
        layers.append(made())
    return layers[slot]


def layout_of(layer: Any) -> CacheLayout | None:
    """The layout of a cache layer; None for one that is not pruned, or for None."""
    return layer.layout if isinstance(layer, PrunedLayer) else None


def is_static(cache: Any) -> bool:
    """Does the cache, or any layer of it, have a fixed number of slots?"""
    return cache is not None and bool(cache.is_compileable)


def claim(cache: Any, slot: int) -> Any:
    """The cache's layer, made one that can be pruned. Raises ValueError for a kind that cannot."""
    layer: Any = cache_layer(cache, slot)
    if layer is None or isinstance(layer, PrunedLayer):
        return layer
    if not isinstance(layer, CacheLayerMixin):
        raise ValueError(f"dart cannot prune into a {type(layer).__name__}")
    sliding = bool(getattr(layer, "is_sliding", False))
    static = isinstance(layer, StaticLayer)
    earlier = [each for each in cache.layers[:slot] if isinstance(each, CacheLayerMixin)]
    # A static window rolls over its slots; all kept tokens are few, and the mask knows the window.
    pruned = _rebuild(StaticLayer if static and sliding else type(layer), vars(layer))
    pruned.is_sliding, pruned.layout = sliding, None
    pruned.leads = all(bool(getattr(each, "is_sliding", False)) != sliding for each in earlier)
    if static:
        pruned.full_length = _full_length(cache)
    cache.layers[slot] = pruned
    return pruned


def fit(layer: Any, dropped: int) -> None:
    """Before a prefill from which `dropped` tokens go: size a static layer for the others.

    A layer that has memory already, and enough of it (a cache that is used again after `reset`), keeps it.
    """
    if not isinstance(layer, StaticLayer):
        return
    needed = int(getattr(layer, "full_length", layer.max_cache_len)) - dropped
    if layer.is_initialized and layer.max_cache_len >= needed:
        return
    if layer.max_cache_len == needed and not layer.is_initialized:
        return
    layer.max_cache_len, layer.is_initialized = needed, False
    layer.keys = layer.values = None
    layer.cumulative_length = torch.zeros_like(layer.cumulative_length)


def _full_length(cache: Any) -> int:
    """The length that a static cache was asked for. Raises ValueError where all of its layers are windows."""
    whole = [each for each in cache.layers if isinstance(each, StaticLayer) and not each.is_sliding]
    lengths = [int(getattr(each, "full_length", each.max_cache_len)) for each in whole]
    if not lengths:
        raise ValueError(
            "dart cannot prune into a static cache whose layers are all sliding windows: use a DynamicCache"
        )
    return max(lengths)


def mask_offsets(cache: Any, query_length: int) -> dict[bool, Any]:
    """The position that the first column of a mask stands for, for sliding layers (True) and others (False).

    A mask is made for the first layer of its kind, which may hold the last tokens alone. To be asked before the layers
    are updated.
    """
    offsets: dict[bool, Any] = {}
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, CacheLayerMixin):
            sliding = bool(getattr(layer, "is_sliding", False))
            if sliding not in offsets:
                offsets[sliding] = layer.get_mask_sizes(query_length)[1]
    return offsets


def stored_tokens(layer: Any) -> tuple[int, int]:
    """(slots in use, slots that the next attention sees before its own tokens) of a cache layer; (n, n) where all are.

    A static layer shows all of its slots, the free ones included.
    """
    if isinstance(layer, StaticLayer):
        return layer.max_cache_len, layer.max_cache_len
    used = int(layer.held() if isinstance(layer, PrunedLayer) else layer.get_seq_length())
    if getattr(layer, "is_sliding", False):
        return used, 0 if layer.keys is None or layer.keys.ndim < 4 else int(layer.keys.shape[-2])
    return used, used


def layout_after(
    layer: Any, kept: torch.Tensor, past: int, length: int, padded: bool
) -> tuple[CacheLayout, torch.Tensor]:
    """(the layout after a pruned prefill, LongTensor [B, m] of the positions that its attention sees).

    kept: LongTensor [B, n], the unpruned positions that stay of this forward's `length` tokens, `PADDING` for none;
    past: the unpruned length before it.
    """
    old = layout_of(layer)
    size = len(kept)
    before = torch.arange(past, device=kept.device).expand(size, -1)
    seen = before
    if layer is not None and past:
        static = isinstance(layer, StaticLayer)
        used, stored = (past - (old.dropped if old else 0),) * 2 if static else stored_tokens(layer)
        before = before if old is None else _rows_for(old.columns(used, used), size)
        seen = before[:, before.shape[1] - stored :]
    slots = torch.cat([before, kept], 1)
    dropped = past + length - slots.shape[1]
    layout = CacheLayout(slots, dropped, padded or bool(old and old.padded))
    if isinstance(layer, StaticLayer):
        short = max(layer.max_cache_len, slots.shape[1])
        layout = CacheLayout(_extended(slots, dropped, short), dropped, layout.padded)
        return layout, layout.slots
    return layout, torch.cat([seen, kept], 1)


def _rows_for(columns: torch.Tensor, size: int) -> torch.Tensor:
    return columns if len(columns) == size else columns.repeat_interleave(size // len(columns), 0)


def _extended(slots: torch.Tensor, dropped: int, length: int) -> torch.Tensor:
    """The slots up to `length`, the free ones with the positions that they will hold."""
    free = torch.arange(slots.shape[1] + dropped, length + dropped, device=slots.device)
    return torch.cat([slots, free.expand(len(slots), -1)], 1)
