"""FastV: the tokens that the last text token attends to (arXiv 2403.06764)."""

from __future__ import annotations

import torch

from dart.config import DartConfig
from dart.strategies.base import Reduction, Strategy, Tokens, highest, register


def last_query(tokens: Tokens) -> torch.Tensor:
    """LongTensor [1]: the sample's last text token; without text after the images, the group's last token."""
    return (tokens.text if tokens.text.numel() else tokens.visual)[-1:]


def last_place(tokens: Tokens) -> int:
    """Its position, without a wait for the device."""
    return int((tokens.plan.text if tokens.plan.text.size else tokens.plan.visual)[-1])


def best_of_windows(scores: torch.Tensor, grid: torch.Tensor, window: int, count: int) -> torch.Tensor:
    """Indices [count], ascending: the best tokens by `scores` [N] of each window of `window` x `window` places of the
    grid [N, 4], first the best of each window, then the second best, windows in proportion to their tokens; among
    windows whose turn it is, those whose next token has the higher score."""
    frame, row, column, tile = grid.T
    places = torch.stack([tile, frame, row // window, column // window], 1)
    _, window_of, sizes = torch.unique(places, dim=0, return_inverse=True, return_counts=True)
    order = scores.sort(descending=True, stable=True).indices  # best first; then window by window
    order = order[window_of[order].sort(stable=True).indices]
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    turns = torch.empty(len(order), device=order.device)
    turns[order] = (rank + 0.5) / sizes.repeat_interleave(sizes)
    first = scores.sort(descending=True, stable=True).indices
    return first[turns[first].sort(stable=True).indices[:count]].sort().values


@register("fastv")
class FastV(Strategy):
    """a_i = mean over heads of the attention weight that the last text token gives to token i in layer K-1; the highest
    `keep` stay, with their positions. The softmax runs over all tokens, so that a head counts by the mass that it gives
    to the image. Paper: K = 2, half of the tokens.

    rope: False compares queries and keys before their rotation: not the paper's, it does not prefer late tokens.
    window: w > 0 shares the tokens over windows of w x w of the grid (arXiv 2502.11501): the best of each window first,
        then the second best, windows in proportion to their tokens. Which windows get the rest is not told there: here
        those whose next token has the higher score.
    Deviation: the official code with a KV cache rounds counts down, the one without rounds; here the count is exact.
    """

    needs = frozenset({"attention"})
    options = {"rope": True, "window": 0}

    def needed(self, config: DartConfig) -> frozenset[str]:
        window = self.option(config, "window")
        if not isinstance(window, int) or window < 0:
            raise ValueError(f"option window of strategy 'fastv' must be an int of 0 or more, got {window!r}")
        return self.needs | {"grid"} if window else self.needs

    def reduce(self, tokens: Tokens) -> Reduction:
        rope, window = self.option(tokens.config, "rope"), self.option(tokens.config, "window")
        scores = tokens.signals.attention_rows(last_query(tokens), bool(rope))[0][tokens.visual]
        if not window:
            return Reduction(tokens.visual[highest(scores, tokens.keep)])
        grid = tokens.signals.grid[tokens.visual]
        return Reduction(tokens.visual[best_of_windows(scores, grid, window, tokens.keep)])
