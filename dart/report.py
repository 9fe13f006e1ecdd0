"""What a pruned prefill did, for whoever wants to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class StageReport:
    """One stage. layer: tokens went before it; visual_after: visual tokens left per sample; seconds: the host's time
    for the selection (on a GPU, for launching it)."""

    layer: int
    visual_after: list[int]
    seconds: float


@dataclass(frozen=True)
class PruneReport:
    """What the last prefill with visual tokens did.

    kept: per sample, LongTensor of the kept visual tokens' positions in the row as given (padding included), ascending.
    Found when it is asked for, which waits for the device.
    visual_before, visual_after: visual tokens per sample; tokens_before, tokens_after: row lengths.
    layer: of the first stage; layers: decoder layers in all; stages: of each stage.
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
    stages: tuple[StageReport, ...] = ()

    @cached_property
    def kept(self) -> list[torch.Tensor]:
        """See the class: LongTensor [kept] per sample. The first time it may wait for the device."""
        if self.rows is None:
            return [torch.from_numpy(np.flatnonzero(row)) for row in self.visual]
        stays = [row[row >= 0] for row in self.rows]
        return [row[torch.from_numpy(seen).to(row.device)[row]] for row, seen in zip(stays, self.visual, strict=True)]

    @property
    def visual_per_layer(self) -> list[list[int]]:
        """[sample][layer]: the visual tokens that each decoder layer sees."""
        rows = []
        for sample, before in enumerate(self.visual_before):
            counts = [before] * self.layers
            for stage in self.stages:
                left = stage.visual_after[sample]
                counts[stage.layer :] = [left] * (self.layers - stage.layer)
            rows.append(counts)
        return rows

    @property
    def mean_visual_tokens(self) -> list[float]:
        """Visual tokens per sample as a mean over all layers."""
        return [sum(counts) / self.layers for counts in self.visual_per_layer]

    @property
    def seconds(self) -> float:
        """The host's time for all selections, in seconds."""
        return sum(stage.seconds for stage in self.stages)
