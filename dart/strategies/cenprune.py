"""Cen-Prune: DivPrune or CDPruner on centred features, weighted by distinctiveness (arXiv 2608.30263)."""

from __future__ import annotations

from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, register
from dart.strategies.cdpruner import min_max, relevance, relevance_needs, spanning
from dart.strategies.divprune import farthest_first, most_isolated

BASES = ("divprune", "cdpruner")


@register("cenprune")
class CenPrune(Strategy):
    """Before the LLM, another selector on a corrected geometry. With the image's mean mu: S'_ij = cos(x_i - mu,
    x_j - mu). Distinctiveness g_i = - mean over j != i of cos(x_i, x_j), min-max scaled per image.

    base: "divprune": its first token on S', then argmax_i of g_i min (1 - S'_is) over the chosen s. "cdpruner": the
        process with L = diag(r g) S' diag(r g), r the relevance to the question (see `cdpruner`).
    clip, tokenizer: of the relevance, see `cdpruner`.
    layer: 0, the paper's for LLaVA: x are the projected features; K: the raw hidden states at layer K.
        `config.layer` is not used.
    Computed in float32. Deviation: on Qwen2.5-VL the paper takes the features before the merger, here they are those
    after it for every family.
    """

    options = {"base": "divprune", "clip": None, "tokenizer": None, "layer": 0}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        return (Stage(int(self.option(config, "layer"))),)

    def needed(self, config: DartConfig) -> frozenset[str]:
        base = self.option(config, "base")
        if base not in BASES:
            raise ValueError(f"option base of strategy 'cenprune' must be one of {', '.join(BASES)}, got {base!r}")
        if base != "cdpruner" and self.option(config, "clip") is not None:
            raise ValueError("option clip of strategy 'cenprune' is for base='cdpruner': DivPrune knows no question")
        return frozenset({"raw"}) | (relevance_needs(config) if base == "cdpruner" else frozenset())

    def reduce(self, tokens: Tokens) -> Reduction:
        features = tokens.signals.raw[tokens.visual].float()
        units, centred = normalize(features, dim=-1), normalize(features - features.mean(0), dim=-1)
        # A token's mean cosine to all rises and falls with that to the others: min-max scaled, they are the same.
        distinct = min_max(-(units @ units.mean(0)))
        if self.option(tokens.config, "base") == "divprune":
            first = most_isolated(centred)
            return Reduction(tokens.visual[farthest_first(centred, first, tokens.keep, distinct)])
        return Reduction(tokens.visual[spanning(centred, relevance(tokens) * distinct, tokens.keep)])
