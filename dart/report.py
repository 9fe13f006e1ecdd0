"""What a pruned prefill did, for whoever wants to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class PruneReport:
    """What the last prefill with visual tokens did.

    kept: per sample, LongTensor of the kept visual tokens' positions in the row as given (padding included), ascending.
    Found when it is asked for, which waits for the device.
    visual_before, visual_after: visual tokens per sample; tokens_before, tokens_after: row lengths.
    layer: K; layers: decoder layers in all.
    rows: LongTensor [B, tokens_after] of the positions that stay, text included, negative where a shorter row has none;
        None: all of them. visual: bool array [B, tokens_before].
    """

    visual_before: list[int]
    visual_after: list[int]
    tokens_before: int
    tokens_after: int
    layer: int
    layers: int
    rows: torch.Tensor | None = field(repr=False)
    visual: np.ndarray = field(repr=False)

    @cached_property
    def kept(self) -> list[torch.Tensor]:
        if self.rows is None:
            return [torch.from_numpy(np.flatnonzero(row)) for row in self.visual]
        stays = [row[row >= 0] for row in self.rows]
        return [row[torch.from_numpy(seen).to(row.device)[row]] for row, seen in zip(stays, self.visual, strict=True)]

    @property
    def mean_visual_tokens(self) -> list[float]:
        """Visual tokens per sample as a mean over all layers: the first K hold all of them."""
        pairs = zip(self.visual_before, self.visual_after, strict=True)
        return [(self.layer * before + (self.layers - self.layer) * after) / self.layers for before, after in pairs]
