"""HiPrune: what the vision tower attends to in its middle, the neighbours, and at its end (arXiv 2508.00553)."""

from __future__ import annotations

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, at_depth, highest, register


@register("hiprune")
class HiPrune(Strategy):
    """Before the LLM. By the attention that a token receives, mean over heads and all queries of the vision tower:
    anchors, the round(alpha * keep / 5) highest in a middle layer; buffers, their neighbours left, right, above and
    below; registers, the highest of the others in the layer whose states are used, until `keep` are there.

    alpha: 0.1, the paper's; depth: the middle layer as a part of the tower's depth, 9 of 24 layers.
    Deviations: an image's edge ends a neighbourhood (theirs goes on in the next row, of 24 tokens in any case); where
    anchors and buffers are more than `keep`, buffers with a lower attention in the later layer are left out.
    `config.layer` is not used.
    """

    options = {"alpha": 0.1, "depth": 9 / 24}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if not 0 <= self.option(config, "alpha") <= 5:
            raise ValueError("option alpha of strategy 'hiprune' must be between 0 and 5: five tokens are an anchor's")
        return (Stage(0),)

    def needed(self, config: DartConfig) -> frozenset[str]:
        return frozenset({"grid", "tower_received", at_depth("tower_received", self.option(config, "depth"))})

    def reduce(self, tokens: Tokens) -> Reduction:
        signals, visual = tokens.signals, tokens.visual
        middle = getattr(signals, at_depth("tower_received", self.option(tokens.config, "depth")))[visual]
        anchors = highest(middle, round(self.option(tokens.config, "alpha") * tokens.keep / 5))
        frame, row, column, tile = signals.grid[visual].T[..., None]  # each [N, 1]
        apart = (row - row[anchors].T).abs() + (column - column[anchors].T).abs()
        near = (apart == 1) & (frame == frame[anchors].T) & (tile == tile[anchors].T)
        rank = near.any(1).long().index_fill_(0, anchors, 2)
        order = signals.tower_received[visual].sort(descending=True, stable=True).indices
        order = order[rank[order].sort(descending=True, stable=True).indices]
        return Reduction(visual[order[: tokens.keep].sort().values])
