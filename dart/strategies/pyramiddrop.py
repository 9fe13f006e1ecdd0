"""PyramidDrop: fewer and fewer tokens, by the attention of the last text token (arXiv 2410.17247)."""

from __future__ import annotations

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, highest, pyramid, register
from dart.strategies.fastv import last_place, last_query


@register("pyramiddrop")
class PyramidDrop(Strategy):
    """At each of several layers, those tokens stay that the last instruction token attends to most, mean over heads.

    The attention is that of the layer that comes next, from the states that go into it: its norm, projections and
    rotation, before anything is dropped there (`next_attention`).

    places: the layers as parts of the decoder's depth; fractions: of the first tokens, what stays from each of them on.
    These are the paper's: 50, 25 and 12.5 % after 8, 16 and 24 of 32 layers, which is `keep=0.125`. Other budgets
    multiply the fractions by one factor, none of them above 1. `config.layer` is not used.
    Deviation: tokens keep their positions; the official code numbers what is left from 0.
    """

    needs = frozenset({"next_attention"})
    options = {"places": (0.25, 0.5, 0.75), "fractions": (0.5, 0.25, 0.125)}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        return pyramid("pyramiddrop", self.option(config, "places"), self.option(config, "fractions"), layers)

    def reduce(self, tokens: Tokens) -> Reduction:
        scores = tokens.signals.next_attention_rows(last_query(tokens), last_place(tokens))[0][tokens.visual]
        return Reduction(tokens.visual[highest(scores, tokens.keep)])
