"""Spread: in rounds, the tokens that resemble neither the image's mean nor what is kept (docs/beyond-dart.md)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart import kernels
from dart.config import DartConfig
from dart.strategies.base import Batch, Reduction, Stage, Strategy, Tokens, register
from dart.strategies.dart import COSINE_EPS, key_norms


@register("spread")
class Spread(Strategy):
    """Rounds that compare a token with the whole image and with all tokens kept so far.

    With unit vectors u_i of the raw hidden states at layer K and their mean ū over the N tokens of the group:

        a_i = u_i . ū    the mean cosine of token i to the group's tokens
        q_i = 1 - a_i    how distinct it is
        m_i = a_i        at first: some token will stay, and the average one is that near
        each round takes the tokens with the largest q_i (1 - m_i), then m_i = max(m_i, cos(u_i, u_j)) over them.

    DART compares a token with one pivot at a time, and never with what other pivots took. Tokens of one round are
    compared with each other too: of `ahead` times as many candidates, m_i of each is first raised to its largest cosine
    to a better one. Text is not looked at. Computed in float32; of equals the lower position wins.

    Related: farthest-point sampling (`divprune`) has a token a round, no q and another start; Cen-Prune has q, with its
    range moved to [0, 1]. Cost: keep * N * D multiplications, N * keep / rounds similarities at once.

    rounds: how many, keep / rounds tokens in each; None: a token a round.
    ahead: 1 compares the tokens of a round with those of earlier rounds alone.
    mean: False: what was a_i in m_i is -1 from the second round on.
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

    def reduce_batch(self, batch: Batch, config: DartConfig) -> torch.Tensor | None:
        """The same for all token groups of all samples at once, on a GPU; None where `dart.kernels` does not do it."""
        if self.option(config, "norms"):
            return None
        rounds, ahead, mean, distinct = (self.option(config, name) for name in ("rounds", "ahead", "mean", "distinct"))
        return kernels.spread_rows(batch, rounds, ahead, bool(mean), bool(distinct))

    def reduce(self, tokens: Tokens) -> Reduction:
        config, keep = tokens.config, tokens.keep
        units = normalize(tokens.signals.raw[tokens.visual].float(), dim=-1, eps=COSINE_EPS)
        common = units @ units.mean(0)
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
    return scores.sort(descending=True, stable=True).indices


def _standardised(norms: torch.Tensor) -> torch.Tensor:
    return (norms - norms.mean()) / norms.std(correction=0).clamp_min(COSINE_EPS)
