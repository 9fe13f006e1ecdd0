"""MMTok: the tokens that together cover the question and the image (arXiv 2508.18264)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, register
from dart.strategies.scope import covering


@register("mmtok")
class MMTok(Strategy):
    """Before the LLM. Greedy facility location (see `scope.covering`) over the rows of two matrices, one below the
    other. P: for each of the question's m tokens, softmax over the N visual tokens of cos(LLM embedding, projected
    feature) / text_temperature, divided by m. Q: for each visual token, the same of the cosines of the vision tower's
    states before the projector / vision_temperature, divided by N, times alpha.

    text_temperature: 0.02; vision_temperature: 0.2; alpha: 0.5: the official defaults.
    Computed in float32. Deviation: all tokens of the question count, theirs are its keywords. Without a question Q
    alone decides. `config.layer` is not used.
    """

    needs = frozenset({"embeddings", "question", "tower_features"})
    options = {"text_temperature": 0.02, "vision_temperature": 0.2, "alpha": 0.5}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if not all(self.option(config, name) > 0 for name in ("text_temperature", "vision_temperature")):
            raise ValueError("options text_temperature and vision_temperature of strategy 'mmtok' must be above 0")
        return (Stage(0),)

    def reduce(self, tokens: Tokens) -> Reduction:
        signals, visual = tokens.signals, tokens.visual
        heat = {name: self.option(tokens.config, name) for name in self.options}
        words = normalize(signals.embeddings[signals.question].float(), dim=-1)
        projected = normalize(signals.embeddings[visual].float(), dim=-1)
        units = normalize(signals.tower_features[visual].float(), dim=-1)
        text = (words @ projected.T / heat["text_temperature"]).softmax(1) / max(len(words), 1)
        vision = (units @ units.T / heat["vision_temperature"]).softmax(1) * heat["alpha"] / len(units)
        return Reduction(visual[covering(torch.cat([text, vision]), tokens.keep)])
