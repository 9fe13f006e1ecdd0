"""Uniform: tokens evenly spaced over the visual tokens (control)."""

from __future__ import annotations

import torch

from dart.strategies.base import Reduction, Strategy, Tokens, register


@register("uniform")
class Uniform(Strategy):
    """The middles of `keep` equal stretches of the token sequence."""

    def reduce(self, tokens: Tokens) -> Reduction:
        count = tokens.visual.numel()
        steps = torch.arange(tokens.keep, device=tokens.visual.device)
        return Reduction(tokens.visual[(2 * steps + 1) * count // (2 * tokens.keep)])
