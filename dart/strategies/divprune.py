"""DivPrune: the tokens that are farthest from each other (arXiv 2503.02175)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, first_highest, greedy, register

BLOCK = 1024  # rows of the similarities that are there at once


def most_isolated(units: torch.Tensor) -> torch.Tensor:
    """LongTensor [1]: of `units` [N, D], vectors of length 1, the one whose nearest other one is farthest."""
    return first_highest(torch.cat([_nearest(units, start) for start in range(0, len(units), BLOCK)]))


def farthest_first(
    units: torch.Tensor, start: torch.Tensor, count: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """LongTensor [count], ascending: `start`, then again and again the one whose nearest chosen one is farthest by
    1 - cosine, times its weight.

    units: float32 [N, D] of length 1; start: LongTensor of one or more different indices; weights: [N], or 1. Of equals
    the first.
    """
    distance = torch.full_like(units[:, 0], torch.inf)

    def after(place: torch.Tensor) -> torch.Tensor:
        torch.minimum(distance, 1 - units @ units[place][0], out=distance)
        return distance if weights is None else distance * weights

    return greedy(distance, count, after, start)


def _nearest(units: torch.Tensor, start: int) -> torch.Tensor:
    """Distance of some, from `start` on, to the nearest other one."""
    distances = 1 - units[start : start + BLOCK] @ units.T
    distances.diagonal(start).fill_(torch.inf)
    return distances.amin(1)


@register("divprune")
class DivPrune(Strategy):
    """Max-min diversity: with d_ij = 1 - cos(x_i, x_j), first the token whose nearest other one is farthest,
    argmax_i min_j d_ij; then, again and again, argmax_i of min d_is over the chosen s. Paper: 9.8 % of the tokens.

    layer: 0, the paper's: x are the projected features that enter the LLM; K: the raw hidden states at layer K.
        `config.layer` is not used.
    Computed in float32; of equals the lower position wins, and no token is chosen twice, as the official code does
    with duplicates. Deviation: `scope="span"`, the default, shares the budget over images; theirs is `scope="joint"`.
    """

    needs = frozenset({"raw"})
    options = {"layer": 0}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        return (Stage(int(self.option(config, "layer"))),)

    def reduce(self, tokens: Tokens) -> Reduction:
        units = normalize(tokens.signals.raw[tokens.visual].float(), dim=-1)
        return Reduction(tokens.visual[farthest_first(units, most_isolated(units), tokens.keep)])
