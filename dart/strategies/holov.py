"""HoloV: the best tokens of every strip of the image, more of the richer ones (arXiv 2510.02912)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, register

TINY = torch.finfo(torch.float).tiny


@register("holov")
class HoloV(Strategy):
    """Before the LLM. The token sequence is cut into strips of N / strips tokens, the first ones one longer where that
    is no whole number. A token's score is a_i + weight * v_i * mean(a) / mean(v): a_i the attention of CLS, mean over
    heads, v_i the variance of the cosines of its projected features to the others of its strip. A strip keeps
    floor(keep * s / sum s), s the mean score of its tokens; what is left goes to the strips by falling s, one each.
    In a strip, the tokens with the highest attention stay.

    strips: 16, as in the official code; weight: 0.09, likewise.
    Deviations: a strip that has no room left gives its surplus to the next ones (theirs fills up with zero vectors);
    mean(a) and mean(v) are of the whole group (theirs are of the strip, which cancels v out of s: weight=0 gives their
    quotas); a token's cosine to itself is not in v_i (there it counts as 0); kept tokens are in order of position.
    A tower without CLS: mean attention received from sampled queries. `config.layer` is not used.
    """

    needs = frozenset({"raw", "tower_attention"})
    options = {"strips": 16, "weight": 0.09}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if not isinstance(count := self.option(config, "strips"), int) or count < 1:
            raise ValueError(f"option strips of strategy 'holov' must be an int of 1 or more, got {count!r}")
        return (Stage(0),)

    def reduce(self, tokens: Tokens) -> Reduction:
        attention = tokens.signals.tower_attention[tokens.visual].float()
        units = normalize(tokens.signals.raw[tokens.visual].float(), dim=-1)
        parts = min(self.option(tokens.config, "strips"), len(units))
        variance = torch.cat([self._variance(part) for part in units.tensor_split(parts)])
        weight = self.option(tokens.config, "weight") * attention.mean() / variance.mean().clamp_min(TINY)
        pieces = (attention + weight * variance).tensor_split(parts)
        scores = torch.stack([piece.mean() for piece in pieces])
        floors = (tokens.keep * scores / scores.sum().clamp_min(TINY)).floor()
        # Of each token: how many of its strip come after the floor before it does; and the turn of its strip.
        ranks = [part.sort(descending=True, stable=True).indices.argsort() for part in attention.tensor_split(parts)]
        late = torch.cat([rank - floor for rank, floor in zip(ranks, floors, strict=True)])
        turns = scores.sort(descending=True, stable=True).indices.argsort()
        turn = torch.cat([turns[k].expand(len(rank)) for k, rank in enumerate(ranks)])
        order = turn.sort(stable=True).indices
        order = order[late[order].sort(stable=True).indices]
        return Reduction(tokens.visual[order[: tokens.keep].sort().values])

    @staticmethod
    def _variance(units: torch.Tensor) -> torch.Tensor:
        """[n]: variance of each token's cosines to the others of a strip [n, D]; 0 where it is alone."""
        others = max(len(units) - 1, 1)
        cosines = (units @ units.T).fill_diagonal_(0)
        means = cosines.sum(1) / others
        return (cosines.square().sum(1) / others - means.square()).clamp_min(0)
