"""Gathering what a decoder layer is given (masks, positions) down to the tokens that are left."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dart import kernels

PADDING = -1  # a slot of a shortened row that holds no token


def gather_tokens(tensor: torch.Tensor, rows: torch.Tensor, dim: int) -> torch.Tensor:
    """Pick `rows` (LongTensor [B, n], padding slots clamped to 0) of a tensor whose token axis is `dim` (negative).

    The axis before it is the batch (size B or 1): [B, S, D] with dim=-2, [3, B, S] with dim=-1, and so on.
    """
    index = rows.clamp_min(0)
    size, count = index.shape
    shape = list(tensor.shape)
    shape[dim - 1] = size
    tensor = tensor.expand(shape)
    shape[dim] = count
    tail = (1,) * (-1 - dim)
    return tensor.gather(tensor.ndim + dim, index.view(size, count, *tail).expand(shape))


def gather_inputs(
    rows: torch.Tensor, hidden: torch.Tensor, angles: Any, positions: torch.Tensor | None
) -> tuple[torch.Tensor, Any, torch.Tensor | None]:
    """`rows` of what a layer is given: hidden states [B, S, D], cos and sin [..., B or 1, S, h], or None, and
    positions [..., B or 1, S], or None."""
    gathered = kernels.gather(rows, hidden, angles, positions)
    if gathered is not None:
        return gathered
    angles = None if angles is None else tuple(gather_tokens(each, rows, -2) for each in angles)
    positions = None if positions is None else gather_tokens(positions, rows, -1)
    return gather_tokens(hidden, rows, -2), angles, positions


def gather_mask(
    mask: Any, rows: torch.Tensor, columns: torch.Tensor, past: int, padded: bool, valid: torch.Tensor | None
) -> Any:
    """The attention mask of the shortened layers.

    mask: what the full-length layers use: None, 2-D [B, KV] (flash), 4-D [B|1, 1, Q, KV] bool or
        additive, or a BlockMask.
    rows: [B, n] kept query rows; columns: [B, m] full-length cache position of each shortened cache slot,
        PADDING = empty.
    past: tokens before this forward's; padded: some slots are empty.
    valid: bool [B, KV] of non-padding positions, used for a BlockMask alone.
    """
    if isinstance(mask, BlockMask):
        return _block_mask(torch.where(rows < 0, rows, rows + past), columns, valid)
    if mask is None:
        return _fresh_mask(torch.where(rows < 0, rows, rows + past), columns) if padded else None
    empty = columns < 0
    if mask.ndim == 2:
        return mask.gather(1, columns.clamp_min(0)).masked_fill(empty, 0)
    size, (n, m) = rows.shape[0], (rows.shape[1], columns.shape[1])
    base = mask.expand(size, *mask.shape[1:])
    heads = base.shape[1]
    base = base.gather(2, rows.clamp_min(0)[:, None, :, None].expand(size, heads, n, base.shape[3]))
    base = base.gather(3, columns.clamp_min(0)[:, None, None, :].expand(size, heads, n, m))
    blocked: Any = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    base = base.masked_fill(empty[:, None, None, :], blocked)
    if padded:
        own = (rows < 0)[:, None, :, None] & _own_slot(rows, columns)[:, None]
        base = base.masked_fill(own, True if mask.dtype == torch.bool else 0.0)
    return base


def _own_slot(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """bool [B, n, m]: the cache slot that the query row itself fills (the last n slots of the row)."""
    n, m = rows.shape[1], columns.shape[1]
    return (torch.arange(m, device=rows.device) == torch.arange(m - n, m, device=rows.device)[:, None]).expand(
        rows.shape[0], n, m
    )


def _fresh_mask(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """bool [B, 1, n, m] for a prefill without padding whose samples keep different numbers of tokens."""
    seen = (columns[:, None, :] >= 0) & (columns[:, None, :] <= rows[:, :, None])
    return (seen | ((rows < 0)[:, :, None] & _own_slot(rows, columns)))[:, None]


def _block_mask(rows: torch.Tensor, columns: torch.Tensor, valid: torch.Tensor | None) -> BlockMask:
    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        column = columns[b, k]
        real = column >= 0
        if valid is not None:
            real = real & valid[b, column.clamp_min(0)]
        return (real & (column <= rows[b, q])) | ((rows[b, q] < 0) & (k == q + columns.shape[1] - rows.shape[1]))

    return create_block_mask(seen, rows.shape[0], None, rows.shape[1], columns.shape[1], device=str(rows.device))
