"""VisionZip: the tokens that CLS attends to, and means of the others (arXiv 2412.04467)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Merge, Reduction, Stage, Strategy, Tokens, highest, register


@register("visionzip")
class VisionZip(Strategy):
    """Before the LLM. Dominant tokens: the highest attention of CLS, mean over heads, in the layer of the vision tower
    whose states are used. Of the n others, in order of position, every step-th is a contextual token, step =
    max(1, n // c); each of the rest goes to the one whose key (mean over heads of the same layer) is most similar by
    cosine, and the mean of what came is added to it: x_t + mean(x_a).

    contextual: their share of the budget; the paper has 10 of 64, 20 of 128, 30 of 192. average: True takes the mean of
        a contextual token and all that came to it, which keeps its norm; theirs, a sum of two, about doubles it.
    Deviations: tokens are added after the projector, theirs before; all stay where they were, theirs are numbered from
    0 with the contextual ones at the end; the CLS token itself, one of their dominant ones, is not fed to the LLM.
    A tower without CLS: mean attention received from sampled queries. `config.layer` is not used.
    """

    needs = frozenset({"tower_attention", "tower_keys"})
    options = {"contextual": 10 / 64, "average": False}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if not 0 <= self.option(config, "contextual") <= 1:
            raise ValueError("option contextual of strategy 'visionzip' must be between 0 and 1")
        return (Stage(0),)

    def reduce(self, tokens: Tokens) -> Reduction:
        visual, count = tokens.visual, round(tokens.keep * self.option(tokens.config, "contextual"))
        rest = torch.ones_like(visual, dtype=torch.bool)
        rest[highest(tokens.signals.tower_attention[visual], tokens.keep - count)] = False
        others = rest.nonzero().flatten()
        targets = others[:: max(1, len(others) // max(count, 1))][:count]
        rest[targets] = False
        keep = (~rest).nonzero().flatten()
        if count == 0:
            return Reduction(visual[keep])
        moved = rest.nonzero().flatten()
        units = normalize(tokens.signals.tower_keys[visual].float().mean(1), dim=-1)
        found = torch.searchsorted(keep, targets.contiguous())[(units[moved] @ units[targets].T).argmax(1)]
        came = torch.zeros(len(keep), device=visual.device).index_add_(
            0, found, torch.ones_like(found, dtype=torch.float)
        )
        own, weights = torch.ones_like(came), 1 / came[found]
        if self.option(tokens.config, "average"):
            own, weights = 1 / (1 + came), 1 / (1 + came[found])
        return Reduction(visual[keep], Merge(visual[moved], found, weights, own))
