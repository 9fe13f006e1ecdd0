"""VScan: tokens that CLS attends to, in windows and in all, then those the question attends to (arXiv 2505.22654)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Merge, Reduction, Stage, Strategy, Tokens, at_depth, highest, register
from dart.strategies.fastv import best_of_windows, last_place, last_query


@register("vscan")
class VScan(Strategy):
    """Two stages. Before the LLM, a share of the tokens is the best of every window of the grid by the attention of CLS
    in an early layer of the vision tower, the others are the best of the rest by that in the layer whose states are
    used, mean over heads. Each dropped token goes to the kept one with the most similar projected feature (cosine),
    which becomes the mean of all that came and itself. In the middle of the LLM, those stay that the last text token
    attends to most, mean over heads; the attention is that of the layer that comes next (see `pyramiddrop`).

    share: 0.5; window: 6, tokens a side; depth: 0.25, the early layer as a part of the tower's depth (6 of 24);
    middle: 0.5, the LLM's layer as a part of its depth (16 of 32); fraction: 1/3, of the tokens before it that stay
    there. All as in the paper, whose 64 tokens are 96 and then 32: `budget_kind="mean-over-layers"` with keep=64;
    `keep` counts what is left at the end otherwise. `config.layer` is not used.
    Deviations: windows share what no whole number of tokens a window gives, which the official code takes away; tokens
    keep their positions.
    A tower without CLS: mean attention received from sampled queries.
    """

    options = {"share": 0.5, "window": 6, "depth": 0.25, "middle": 0.5, "fraction": 1 / 3}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        share, fraction, middle = (self.option(config, name) for name in ("share", "fraction", "middle"))
        if not 0 <= share <= 1 or not 0 < fraction <= 1 or not 0 < middle < 1:
            raise ValueError("options share, fraction and middle of strategy 'vscan' must be between 0 and 1")
        if not isinstance(window := self.option(config, "window"), int) or window < 1:
            raise ValueError(f"option window of strategy 'vscan' must be an int of 1 or more, got {window!r}")
        return Stage(0, 1.0), Stage(max(1, round(middle * layers)), float(fraction))

    def needed(self, config: DartConfig) -> frozenset[str]:
        early = at_depth("tower_attention", self.option(config, "depth"))
        return frozenset({"raw", "grid", "tower_attention", early, "next_attention"})

    def reduce(self, tokens: Tokens) -> Reduction:
        visual, signals, count = tokens.visual, tokens.signals, tokens.keep
        if tokens.stage:
            scores = signals.next_attention_rows(last_query(tokens), last_place(tokens))[0][visual]
            return Reduction(visual[highest(scores, count)])
        early = getattr(signals, at_depth("tower_attention", self.option(tokens.config, "depth")))[visual]
        few = int(count * self.option(tokens.config, "share"))
        chosen = best_of_windows(early, signals.grid[visual], self.option(tokens.config, "window"), few)
        late = signals.tower_attention[visual].index_fill(0, chosen, -1)
        keep = torch.cat([chosen, highest(late, count - few)]).sort().values
        if count == 0:
            return Reduction(visual[:0])
        moved = highest(torch.ones_like(visual).index_fill_(0, keep, 0), len(visual) - count)
        units = normalize(signals.raw[visual].float(), dim=-1)
        targets = (units[moved] @ units[keep].T).argmax(1)
        came = torch.zeros(count, device=visual.device).index_add_(0, targets, torch.ones_like(units[moved, 0]))
        shares = 1 / (1 + came)
        return Reduction(visual[keep], Merge(visual[moved], targets, shares[targets], shares))
