"""ToMe: similar tokens merged into one, a few at a time (arXiv 2210.09461)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Merge, Reduction, Stage, Strategy, Tokens, highest, register


@register("tome")
class ToMe(Strategy):
    """Before the LLM, on the projected features. In each round the tokens that are left, in order of position, are
    split into every first and every second one; each first one has an edge to the most similar second one (cosine), and
    the tokens of the r most similar edges are merged into their second ones: the mean, weighted by how many tokens each
    of the two stands for. What is kept lies at the position of the last second one and is the mean of all that came.

    rounds: over how many rounds the N - keep merges are spread evenly, more where a round would merge more than half.
        23: ToMe merges in every block of the vision tower, of which CLIP ViT-L has 23 up to the states that LLaVA uses.
    layer: 0, or K: the hidden states at layer K. `config.layer` is not used.
    Computed in float32. Deviations: the paper merges inside the tower, by its keys, and attends in proportion to sizes;
    after the tower neither can be had, and the tower runs as a whole.
    """

    needs = frozenset({"raw"})
    options = {"rounds": 23, "layer": 0}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if not isinstance(count := self.option(config, "rounds"), int) or count < 1:
            raise ValueError(f"option rounds of strategy 'tome' must be an int of 1 or more, got {count!r}")
        return (Stage(int(self.option(config, "layer"))),)

    def reduce(self, tokens: Tokens) -> Reduction:
        visual, count = tokens.visual, tokens.keep
        if count == 0:
            return Reduction(visual[:0])
        sums = tokens.signals.raw[visual].float()
        sizes = torch.ones_like(sums[:, 0])
        left = owner = torch.arange(len(visual), device=visual.device)  # owner: into which each token went
        step = -(-(len(visual) - count) // self.option(tokens.config, "rounds"))
        while len(left) > count:
            ones, others = left[::2], left[1::2]
            units = normalize(sums, dim=-1)  # of a sum as of the mean
            similarity, nearest = (units[ones] @ units[others].T).max(1)
            places = highest(similarity, min(step, len(left) - count, len(left) // 2))
            gone, into = ones[places], others[nearest[places]]
            sums.index_add_(0, into, sums[gone])
            sizes.index_add_(0, into, sizes[gone])
            owner = torch.arange(len(visual), device=visual.device).index_copy_(0, gone, into)[owner]
            stays = torch.ones_like(left).index_fill_(0, 2 * places, 0)
            left = left[highest(stays, len(left) - len(places))]
        moved = torch.ones_like(owner).index_fill_(0, left, 0)
        moved = highest(moved, len(visual) - count)
        targets = torch.searchsorted(left, owner[moved])
        return Reduction(visual[left], Merge(visual[moved], targets, 1 / sizes[owner[moved]], 1 / sizes[left]))
