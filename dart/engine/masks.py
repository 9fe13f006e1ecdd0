"""Attention masks of the shortened layers, gathered from those of the full-length ones."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dart.engine.layout import PADDING


def gather_mask(
    mask: Any,
    rows: torch.Tensor | None,
    columns: torch.Tensor,
    length: int,
    past: int,
    padded: bool,
    flash: bool,
    offset: Any = 0,
) -> Any:
    """The attention mask of a shortened layer.

    mask: what the layer would have been given for the unpruned conversation: None, 2-D [B, KV] (flash attention), 4-D
        [B or 1, heads or 1, Q, KV] bool or additive, or a BlockMask.
    rows: LongTensor [B, n], which of this forward's `length` tokens stay, `PADDING` for none; None: all.
    columns: LongTensor [B, m], the unpruned position that each slot of the layer holds, `PADDING` for none.
    past: unpruned tokens before this forward's; padded: some slots hold no token; offset: the position of the mask's
    first column (an int, or a tensor of one), of which earlier ones are out of sight.
    """
    columns = columns if not isinstance(mask, torch.Tensor) else columns.to(mask.device)
    if mask is None and not padded:
        return None
    if mask is None and flash:
        return (columns >= 0).long()
    if rows is None:
        rows = torch.arange(length, device=columns.device).expand(len(columns), -1)
    rows = rows.to(columns.device)
    if not isinstance(offset, int) or offset:
        columns = (columns - offset).clamp_min(PADDING)
    if isinstance(mask, BlockMask):
        return _block_mask(mask, rows, columns)
    if mask is None:
        return _fresh_mask(torch.where(rows < 0, rows, rows + past), columns)
    # A window's mask in front of a static layer may end before the slots that are still free.
    empty = (columns < 0) | (columns >= mask.shape[-1])
    columns = columns.masked_fill(empty, 0)
    if mask.ndim == 2:
        return mask.expand(len(columns), -1).gather(1, columns).masked_fill(empty, 0)
    size, n, m = len(rows), rows.shape[1], columns.shape[1]
    base = mask.expand(size, *mask.shape[1:])
    heads = base.shape[1]
    if rows.shape[1] != base.shape[2] or length > 1:
        base = base.gather(2, rows.clamp_min(0)[:, None, :, None].expand(size, heads, n, base.shape[3]))
    base = base.gather(3, columns[:, None, None, :].expand(size, heads, n, m))
    blocked: Any = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    base = base.masked_fill(empty[:, None, None, :], blocked)
    if padded:
        own = (rows < 0)[:, None, :, None] & _own_slot(rows, columns)[:, None]
        base = base.masked_fill(own, True if mask.dtype == torch.bool else 0.0)
    return base


def gather_padding(mask: torch.Tensor | None, rows: torch.Tensor, padded: bool) -> torch.Tensor | None:
    """The mask [B, n] of a layer without softmax attention, which takes one over this forward's tokens, [B, S]."""
    if mask is None:
        return (rows >= 0).long() if padded else None
    return mask.expand(len(rows), -1).gather(1, rows.clamp_min(0)).masked_fill(rows < 0, 0)


def _own_slot(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """bool [B, n, m]: the slot that the query row itself fills (the last n slots of the row)."""
    n, m = rows.shape[1], columns.shape[1]
    return (torch.arange(m, device=rows.device) == torch.arange(m - n, m, device=rows.device)[:, None]).expand(
        rows.shape[0], n, m
    )


def _fresh_mask(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """bool [B, 1, n, m] for a causal forward without padding whose samples keep different numbers of tokens."""
    seen = (columns[:, None, :] >= 0) & (columns[:, None, :] <= rows[:, :, None])
    return (seen | ((rows < 0)[:, :, None] & _own_slot(rows, columns)))[:, None]


def _block_mask(mask: BlockMask, rows: torch.Tensor, columns: torch.Tensor) -> BlockMask:
    whole, last = mask.mask_mod, columns.shape[1] - rows.shape[1]

    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        row, column = rows[b, q], columns[b, k]
        allowed = whole(b, h, row.clamp_min(0), column.clamp_min(0)) & (column >= 0) & (row >= 0)
        return allowed | ((row < 0) & (k == q + last))

    return create_block_mask(seen, len(rows), None, rows.shape[1], columns.shape[1], device=str(rows.device))


def visible_to_last(mask: torch.Tensor) -> torch.Tensor:
    """bool [B, KV]: the positions that the last query of a prepared 4-D mask sees."""
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last == 0


__all__ = ["PADDING", "gather_mask", "gather_padding", "visible_to_last"]
