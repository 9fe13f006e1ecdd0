"""V2Drop: fewer and fewer tokens, those that the last layer changed most (arXiv 2509.01552)."""

from __future__ import annotations

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, highest, pyramid, register


@register("v2drop")
class V2Drop(Strategy):
    """At each of several layers l, the tokens with the largest |h_i^l - h_i^(l-1)|_2 stay, h^l the states that go into
    layer l. No attention and no question is looked at.

    places: the layers as parts of the decoder's depth; fractions: of the first tokens, what stays from each on, times
    one factor that the budget sets. The default: the official code's, for LLaVA-1.5, before layers 3 and 17 of 32, half
    of what is there each time. `config.layer` is not used.
    Deviation: before layer 22 the official code drops all but one of the rest, which no budget of tokens after the last
    stage can tell. places=(3/32, 17/32, 22/32), fractions=(1/2, 1/4, 1/576) and keep=1 of 576 are exactly its LLaVA-1.5
    setting, 202.8 tokens as a mean over the layers; Qwen2-VL's has 3/28, 16/28, 22/28 and 1/4, 1/20 and one token.
    """

    needs = frozenset({"raw", "previous"})
    options = {"places": (3 / 32, 17 / 32), "fractions": (0.5, 0.25)}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        return pyramid("v2drop", self.option(config, "places"), self.option(config, "fractions"), layers)

    def reduce(self, tokens: Tokens) -> Reduction:
        now, before = tokens.signals.raw[tokens.visual], tokens.signals.previous[tokens.visual]
        changes = (now.float() - before.float()).norm(dim=-1)
        return Reduction(tokens.visual[highest(changes, tokens.keep)])
