"""Spread: DART's rounds with a memory of everything that was kept (this project's own; docs/beyond-dart.md)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, register
from dart.strategies.dart import COSINE_EPS, key_norms, without_ties


@register("spread")
class Spread(Strategy):
    """Rounds that compare a token with the image's mean and with all tokens kept so far.

    With unit vectors u_i of the raw hidden states at layer K, their mean ū over the token group and c_i = cos(u_i, ū):

        q_i = 1 - c_i    how distinct token i is
        m_i = c_i        at first: the mean counts as kept, since what most tokens say is said by any of them
        each round takes the tokens with the largest q_i (1 - m_i), then m_i = max(m_i, cos(u_i, u_j)) over them.

    DART compares a token with one pivot at a time, and never with what other pivots took. A token of a round is
    compared with the others of its round too: of the `ahead` times as many candidates, m_j of each is raised to its
    largest cosine to a better one. Text is not looked at. Computed in float32; of equals the lower position wins.
    Related: farthest-point sampling (`divprune`) has one token per round, no q and another start; Cen-Prune has q with
    its minimum and maximum moved to 0 and 1. Cost: keep * N * D
    multiplications, and N * keep / rounds similarities at once.

    rounds: how many, keep / rounds tokens in each; None: a token a round.
    ahead: 1 compares the tokens of a round with those of earlier rounds alone.
    mean: False: m_i = -1 after the first round, which still is by c_i.
    distinct: False: q_i = 1.
    norms: beta: q_i is multiplied by sigmoid(beta * z_i), z_i the standardised L1 norm of the key; 0: not at all.
    """

    needs = frozenset({"raw"})
    options = {"rounds": 8, "ahead": 4, "mean": True, "distinct": True, "norms": 0.0}

    def needed(self, config: DartConfig) -> frozenset[str]:
        return self.needs | {"keys"} if self.option(config, "norms") else self.needs

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        for name, none in (("rounds", True), ("ahead", False)):
            value = self.option(config, name)
            if not (none and value is None or type(value) is int and value >= 1):
                raise ValueError(f"strategy 'spread': {name} must be a whole number of 1 or more, got {value!r}")
        return (Stage(config.layer),)

    def reduce(self, tokens: Tokens) -> Reduction:
        config, keep = tokens.config, tokens.keep
        units = normalize(tokens.signals.raw[tokens.visual].float(), dim=-1, eps=COSINE_EPS)
        common = units @ normalize(units.mean(0), dim=0, eps=COSINE_EPS)
        quality = 1 - common if self.option(config, "distinct") else torch.ones_like(common)
        if beta := self.option(config, "norms"):
            quality = quality * (beta * _standardised(key_norms(tokens.signals.keys[:, tokens.visual]))).sigmoid()
        rounds = min(self.option(config, "rounds") or keep, keep)
        memory, taken = common, torch.zeros_like(common)
        chosen: list[torch.Tensor] = []
        for number in range(rounds):
            size = keep // rounds + (number < keep % rounds)
            order = _first(quality * (1 - memory) - taken)
            candidates = order[: size * self.option(config, "ahead")]
            picked = candidates[_first(self._among(units, quality, memory, taken, candidates))[:size]]
            if number == 0 and not self.option(config, "mean"):
                memory = torch.full_like(memory, -1)
            memory = torch.maximum(memory, (units @ units[picked].T).amax(1))
            taken = taken.index_fill(0, picked, torch.inf)
            chosen.append(picked)
        return Reduction(tokens.visual[torch.cat(chosen).sort().values] if chosen else tokens.visual[:0])

    @staticmethod
    def _among(
        units: torch.Tensor, quality: torch.Tensor, memory: torch.Tensor, taken: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        """The scores of a round's candidates (best first), each compared with those before it."""
        own = units[candidates]
        similar = own @ own.T
        better = similar.masked_fill(torch.ones_like(similar, dtype=torch.bool).triu(), -1).amax(1)
        return quality[candidates] * (1 - torch.maximum(memory[candidates], better)) - taken[candidates]


def _first(scores: torch.Tensor) -> torch.Tensor:
    """LongTensor [N]: indices from the highest score on, of equals the first ones."""
    return without_ties(scores.neg()).sort().indices


def _standardised(norms: torch.Tensor) -> torch.Tensor:
    return (norms - norms.mean()) / norms.std(correction=0).clamp_min(COSINE_EPS)
