"""Random: tokens drawn at random (control)."""

from __future__ import annotations

import torch

from dart.strategies.base import Reduction, Strategy, Tokens, register


@register("random")
class Random(Strategy):
    """The draw depends on the seed and the number of visual tokens alone: the same in any batch, on any device."""

    def reduce(self, tokens: Tokens) -> Reduction:
        generator = torch.Generator().manual_seed(tokens.config.seed)
        chosen = torch.randperm(tokens.visual.numel(), generator=generator)[: tokens.keep].sort().values
        return Reduction(tokens.visual[chosen.to(tokens.visual.device)])
