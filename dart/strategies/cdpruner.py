"""CDPruner: the tokens that span most together, weighted by the question (arXiv 2506.10967)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, greedy, register

FLOOR = 1e-6  # added to relevances before they are divided by their range, so that none is 0
SAME = 1e-6  # cosines whose range is below this differ by rounding alone
SPENT = 1e-6  # a token that would add less than this to the determinant, with qualities of 1 or less, adds nothing


def min_max(values: torch.Tensor, floor: float = 0.0) -> torch.Tensor:
    """(values - lowest + floor) / (highest - lowest); 1 where all cosines are equal."""
    low, high = values.aminmax()
    return torch.where(high - low > SAME, (values - low + floor) / (high - low), 1.0)


def spanning(units: torch.Tensor, quality: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [count], ascending: greedily the largest determinant of the chosen part of L = diag(q) U U^T diag(q).

    units: U float32 [N, D] of norm 1; quality: q [N] > 0. Each step takes the token that multiplies the determinant by
    most: its variance given the chosen ones, by a Cholesky factor that grows by one row a step. What adds nothing any
    more (as many are chosen as there are dimensions, or duplicates are left) follows by its quality.
    """
    quality = quality / quality.max()
    scaled = units * quality[:, None]
    variance = quality.square()
    factor = scaled.new_zeros(max(count, 1), len(units))  # of L's columns, on the chosen ones
    rows = iter(factor)

    def gains() -> torch.Tensor:
        return torch.where(variance > SPENT, variance, quality - 2)

    def after(place: torch.Tensor) -> torch.Tensor:
        column = scaled @ scaled[place][0] - factor.T @ factor[:, place][:, 0]
        row = column / variance[place].clamp_min(SPENT).sqrt()
        next(rows).copy_(row)
        variance.sub_(row.square())
        return gains()

    return greedy(gains(), count, after)


def relevance(tokens: Tokens) -> torch.Tensor:
    """float32 [N], in (0, 1]: how unlike the question each visual token is; 1 for all where there is no question."""
    signals = tokens.signals
    if tokens.config.options.get("clip") is not None:
        return min_max(-signals.clip_similarity[tokens.visual].float(), FLOOR)
    if not len(signals.question):
        return torch.ones_like(tokens.visual, dtype=torch.float)
    units = normalize(signals.embeddings.float(), dim=-1)
    return min_max(-(units[tokens.visual] @ units[signals.question].T).mean(1), FLOOR)


def relevance_needs(config: DartConfig) -> frozenset[str]:
    """The signals of `relevance`."""
    return frozenset({"question", "embeddings" if config.options.get("clip") is None else "clip_similarity"})


@register("cdpruner")
class CDPruner(Strategy):
    """Before the LLM. A determinantal point process with L = diag(r) S diag(r): S_ij = cos(x_i, x_j) of the projected
    features, r_i the token's relevance to the question, min-max scaled to (0, 1] per image. Greedily, the set with the
    largest det L. (r_i is a *negative* similarity in both variants, as in the official code: CLIP's patches and texts
    are anti-aligned.)

    clip: None: r_i = - mean over the question's tokens of the cosine of LLM embeddings, as OpenVINO has it for models
        without CLIP. A folder or name of the CLIP whose vision tower the model has: the paper's r_i, minus the cosine
        of CLIP's two projections, mean over pieces of the question that fit its text tower.
    tokenizer: with `clip`, the LLM's tokenizer or its folder; None: that of the model's own checkpoint.
    theta: in [0, 1), r becomes exp(theta / (2 (1 - theta)) r); None, the paper's, leaves it.
    Computed in float32. Deviations: equal relevances count 1 and an exhausted rank falls back to relevance, where the
    official code divides by 0; minimum and maximum are of an image, theirs of all tiles of a batch.
    `config.layer` is not used.
    """

    options = {"clip": None, "tokenizer": None, "theta": None}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        theta = self.option(config, "theta")
        if theta is not None and not 0 <= theta < 1:
            raise ValueError(f"option theta of strategy 'cdpruner' must be None or in [0, 1), got {theta!r}")
        return (Stage(0),)

    def needed(self, config: DartConfig) -> frozenset[str]:
        return relevance_needs(config) | {"embeddings"}

    def reduce(self, tokens: Tokens) -> Reduction:
        quality, theta = relevance(tokens), self.option(tokens.config, "theta")
        if theta is not None:
            quality = (theta / (2 * (1 - theta)) * quality).exp()
        units = normalize(tokens.signals.embeddings[tokens.visual].float(), dim=-1)
        return Reduction(tokens.visual[spanning(units, quality, tokens.keep)])
