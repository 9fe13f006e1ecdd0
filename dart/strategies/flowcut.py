"""FlowCut: the tokens that CLS attends to, that resemble what it reads and that weigh most (arXiv 2505.19536)."""

from __future__ import annotations

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, highest, register


@register("flowcut")
class FlowCut(Strategy):
    """Before the LLM: s_i = (a_i / sum(a) + c_i / sum(c)) |x_i|_1, where a is the attention of CLS, mean over heads, in
    the layer of the vision tower whose states x are used, and c_i = x_i . sum_j(a_j x_j), what CLS reads. The `keep`
    highest stay.

    Deviations: the paper's rule runs inside the tower, at every second layer, with a running mean of s and as many
    tokens as the entropy of a allows; here once, after it, which saves the tower no time. The paper's x are the layer's
    values, and c_i = v_CLS . v_i. A tower without CLS: mean attention received from sampled queries. `config.layer` is
    not used.
    """

    needs = frozenset({"tower_attention", "tower_features"})

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        return (Stage(0),)

    def reduce(self, tokens: Tokens) -> Reduction:
        states = tokens.signals.tower_features[tokens.visual].float()
        attention = tokens.signals.tower_attention[tokens.visual].float()
        alike = states @ (attention @ states)
        scores = (attention / attention.sum() + alike / alike.sum()) * states.abs().sum(1)
        return Reduction(tokens.visual[highest(scores, tokens.keep)])
