"""Control: as many tokens as DART keeps, drawn at random."""

from __future__ import annotations

import torch

from dart.config import DartConfig
from dart.strategies.base import Pool, register


@register("random")
class Random:
    """The draw depends on the seed and the number of visual tokens alone: the same in any batch, on any device."""

    def __call__(self, pool: Pool, config: DartConfig) -> torch.Tensor:
        generator = torch.Generator().manual_seed(config.seed)
        chosen = torch.randperm(pool.visual.numel(), generator=generator)[: pool.kept]
        return pool.visual[chosen.to(pool.visual.device)]
