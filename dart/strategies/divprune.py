"""DivPrune: the tokens that are farthest from each other (arXiv 2503.02175)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, register

BLOCK = 1024  # rows of the similarities that are there at once


def _first_highest(scores: torch.Tensor) -> torch.Tensor:
    """LongTensor [1]: the place of the highest score, the first one of equals, without a wait for the device."""
    places = torch.arange(len(scores), device=scores.device)
    return torch.where(scores == scores.max(), places, len(scores)).min()[None]


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
        distance = torch.cat([self._nearest(units, start) for start in range(0, len(units), BLOCK)])
        chosen: list[torch.Tensor] = []
        taken = torch.zeros_like(distance, dtype=torch.bool)
        for number in range(tokens.keep):
            chosen.append(_first_highest(distance.masked_fill(taken, -torch.inf)))
            taken[chosen[-1]] = True
            own = 1 - units @ units[chosen[-1]][0]
            distance = own if number == 0 else torch.minimum(distance, own)
        return Reduction(tokens.visual[torch.cat(chosen).sort().values] if chosen else tokens.visual[:0])

    @staticmethod
    def _nearest(units: torch.Tensor, start: int) -> torch.Tensor:
        """Distance of some tokens, from `start` on, to the nearest other one."""
        distances = 1 - units[start : start + BLOCK] @ units.T
        distances.diagonal(start).fill_(torch.inf)
        return distances.amin(1)
