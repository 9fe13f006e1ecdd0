"""SCOPE: salient tokens that together resemble every token of the image (arXiv 2510.24214)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, greedy, register


def covering(rows: torch.Tensor, count: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Indices [count], ascending, of columns: greedy facility location on `rows` [R, N].

    A set covers row r by c_r, the highest of its columns there, 0 at least. Each step takes argmax_j of w_j times
    sum_r max(0, rows_rj - c_r); weights: w [N], or 1.
    """
    covered = torch.zeros_like(rows[:, 0])

    def gains() -> torch.Tensor:
        total = (rows - covered[:, None]).clamp_min(0).sum(0)
        return total if weights is None else total * weights

    def after(place: torch.Tensor) -> torch.Tensor:
        torch.maximum(covered, rows[:, place][:, 0], out=covered)
        return gains()

    return greedy(gains(), count, after)


@register("scope")
class Scope(Strategy):
    """Before the LLM. With S_ij the cosine of the vision tower's states before the projector, the chosen tokens cover
    token u by c_u = max over them of S_us (0 at first). Each step takes argmax_j of
    a_j^alpha * sum_u max(0, S_uj - c_u), a_j the attention that CLS pays token j, mean over heads (theirs is the sum,
    which changes no choice).

    alpha: 1, the paper's; 0: coverage alone.
    Computed in float32. A tower without CLS: mean attention received from sampled queries. `config.layer` is not used.
    """

    needs = frozenset({"tower_features", "tower_attention"})
    options = {"alpha": 1.0}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if self.option(config, "alpha") < 0:
            raise ValueError("option alpha of strategy 'scope' must be 0 or more")
        return (Stage(0),)

    def reduce(self, tokens: Tokens) -> Reduction:
        units = normalize(tokens.signals.tower_features[tokens.visual].float(), dim=-1)
        salience = tokens.signals.tower_attention[tokens.visual].float() ** self.option(tokens.config, "alpha")
        return Reduction(tokens.visual[covering(units @ units.T, tokens.keep, salience)])
