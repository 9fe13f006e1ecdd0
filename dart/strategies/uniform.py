"""Control: as many tokens as DART keeps, evenly spaced over the visual tokens."""

from __future__ import annotations

import torch

from dart.config import DartConfig
from dart.strategies.base import Pool, register


@register("uniform")
class Uniform:
    """The middles of `kept` equal stretches of the token sequence."""

    def __call__(self, pool: Pool, config: DartConfig) -> torch.Tensor:
        count = pool.visual.numel()
        steps = torch.arange(pool.kept, device=pool.visual.device)
        return pool.visual[(2 * steps + 1) * count // (2 * pool.kept)]
