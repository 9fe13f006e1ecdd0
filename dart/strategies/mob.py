"""MoB: the tokens nearest to the question, then those farthest from all that were chosen (arXiv 2505.10118)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Strategy, Tokens, register
from dart.strategies.divprune import farthest_first, most_isolated

PROMPT_LEAST, PROMPT_SHARE = 16, 0.25
PROMPT_MOST = 0.5
NEIGHBOURS = 1 / 8


@register("mob")
class MoB(Strategy):
    """Covers the question and the image, by cosines of the hidden states at layer K: each token of the question names
    its f most similar visual tokens; of all that were named, the P with the highest similarity to one that named them
    are chosen first. From these on, again and again the token whose nearest chosen one is farthest by 1 - cosine. A
    short question may name fewer than P: the second rule goes on from those. Paper: K = 2.

    prompt_share: P / keep, and neighbours: f. None, the paper's values without a prior: P = 32, 48 and 64 for 64, 128
        and 192 tokens, f = 4, 6 and 8, between and beyond which P = min(keep / 2, 16 + keep / 4) and f = P / 8. (The
        paper prints P in the opposite order, which would leave 64 tokens no second rule.) With its prior, which is set
        by benchmark: P / keep = 3/8, 1/4, 1/4 and f = 3 P / 40 where question and image are coupled strongly (MMBench,
        ScienceQA, VizWiz), else 1/2, 7/16, 5/12 and f = P / 8.
    Without text after the image it is DivPrune at layer K. Of equals the lower position wins. No official code.
    """

    needs = frozenset({"raw", "question"})
    options = {"prompt_share": None, "neighbours": None}

    def needed(self, config: DartConfig) -> frozenset[str]:
        share, neighbours = self.option(config, "prompt_share"), self.option(config, "neighbours")
        if not (share is None or 0 <= share <= 1) or not (neighbours is None or neighbours >= 1):
            raise ValueError(
                "options of strategy 'mob': prompt_share must be None or between 0 and 1, neighbours None or 1 or "
                f"more, got {share!r} and {neighbours!r}"
            )
        return self.needs

    def reduce(self, tokens: Tokens) -> Reduction:
        units = normalize(tokens.signals.raw[tokens.visual].float(), dim=-1)
        start = self._named(tokens, units) if tokens.signals.question.numel() else tokens.visual[:0]
        if not len(start):
            start = most_isolated(units)
        return Reduction(tokens.visual[farthest_first(units, start, tokens.keep)])

    def _named(self, tokens: Tokens, units: torch.Tensor) -> torch.Tensor:
        """LongTensor [P or fewer]: the tokens that the question names, best first."""
        share, neighbours = (self.option(tokens.config, name) for name in self.options)
        size = min(PROMPT_MOST * tokens.keep, PROMPT_LEAST + PROMPT_SHARE * tokens.keep)
        size = round(size if share is None else share * tokens.keep)
        near = max(1, round(NEIGHBOURS * size)) if neighbours is None else int(neighbours)
        words = normalize(tokens.signals.raw[tokens.signals.question].float(), dim=-1)
        similar = words @ units.T
        nearest = similar.sort(dim=1, descending=True, stable=True).indices[:, :near]
        named = torch.zeros_like(similar, dtype=torch.bool).scatter_(1, nearest, True)
        best = similar.masked_fill(~named, -torch.inf).amax(0)
        return best.sort(descending=True, stable=True).indices[: min(size, int(named.any(0).sum()))]
