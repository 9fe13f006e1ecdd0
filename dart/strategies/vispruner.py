"""VisPruner: the tokens that CLS attends to, and those of the others with no twin (arXiv 2412.01818)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, register

TWINS = 8  # tokens dropped at once, as in the official code


@register("vispruner")
class VisPruner(Strategy):
    """Before the LLM. int(share * keep) tokens by the attention of CLS, mean over heads, in the layer of the vision
    tower whose states are used. The others, by falling attention, lose duplicates until enough are left: split into
    every first and every second one, each first one scores its highest cosine (of the tower's states before the
    projector) to a second one, and the 8 with the highest scores are dropped; the rest of the first ones, by falling
    score, and the second ones are the list of the next round.

    share: 0.5, the paper's. 1: FasterVLM (attention alone, an earlier version of the same paper).
    Deviations: on LLaVA-NeXT the official scripts take away the unpadding and give every tile keep / 5; newlines are
    dropped first.
    A tower without CLS: mean attention received from sampled queries. `config.layer` is not used.
    """

    needs = frozenset({"tower_features", "tower_attention"})
    options = {"share": 0.5}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if not 0 <= self.option(config, "share") <= 1:
            raise ValueError("option share of strategy 'vispruner' must be between 0 and 1")
        return (Stage(0),)

    def reduce(self, tokens: Tokens) -> Reduction:
        order = tokens.signals.tower_attention[tokens.visual].sort(descending=True, stable=True).indices
        strong = int(tokens.keep * self.option(tokens.config, "share"))
        distinct = tokens.keep - strong
        units = normalize(tokens.signals.tower_features[tokens.visual].float(), dim=-1)
        patches = int(units.any(1).sum())  # not newlines, whose features and attention are 0
        rest = order[strong : max(patches, tokens.keep)] if distinct else order[:0]
        while len(rest) > distinct:
            ones, others = rest[::2], rest[1::2]
            scores = (units[ones] @ units[others].T).amax(1)
            fewer = min(TWINS, len(rest) - distinct)
            rest = torch.cat([ones[scores.sort(descending=True, stable=True).indices[fewer:]], others])
        return Reduction(tokens.visual[torch.cat([order[:strong], rest]).sort().values])
