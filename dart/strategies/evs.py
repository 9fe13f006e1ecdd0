"""EVS: of a video, the tokens that differ most from the frame before (arXiv 2510.14624)."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from dart.config import DartConfig
from dart.strategies.base import Reduction, Stage, Strategy, Tokens, highest, register


@register("evs")
class EVS(Strategy):
    """Before the LLM, as vLLM and SGLang prune videos: d = 1 - cosine of a token and the one at its place a frame
    earlier; the first frame's are larger than any. The `keep` with the largest d stay, of equals the earlier ones.

    A frame is one of the model's grid: for Qwen2-VL, a pair of the video's. Where a family makes each frame a visual
    span of its own, `scope="joint"` compares them; images of one size that follow each other count as frames then.
    Refused: images, which have no frame before them, and a budget below the first frame, which vLLM would raise to one
    frame. `config.layer` is not used.
    """

    needs = frozenset({"raw", "grid"})

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        return (Stage(0),)

    def reduce(self, tokens: Tokens) -> Reduction:
        visual, states = tokens.visual, tokens.signals.raw[tokens.visual]
        earlier, found = self._earlier(tokens.signals.grid[visual])
        changes = 1 - cosine_similarity(states.float(), states[earlier].float(), dim=-1)
        first = int((~found).sum())
        if first == len(visual):
            raise ValueError(
                "strategy 'evs' compares the frames of a video, and these visual tokens are of one frame or of images "
                "of different sizes: choose another strategy, or scope='joint' where each frame is a span of its own"
            )
        if tokens.keep < first:
            raise ValueError(
                f"strategy 'evs' keeps the first frame of a video, {first} tokens here, and the budget is "
                f"{tokens.keep}: ask for more tokens"
            )
        return Reduction(visual[highest(changes.masked_fill(~found, torch.inf), tokens.keep)])

    @staticmethod
    def _earlier(grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(index of the token at the same place one frame earlier, is there one) for `grid` [N, 4] of the tokens."""
        frames, frame = torch.unique(grid[:, [3, 0]], dim=0, return_inverse=True)
        row, column = grid[:, 1], grid[:, 2]
        high, wide = (torch.zeros_like(frames[:, 0]).scatter_reduce(0, frame, each, "amax") for each in (row, column))
        table = grid.new_full((len(frames), int(high.max()) + 1, int(wide.max()) + 1), -1)
        table[frame, row, column] = torch.arange(len(grid), device=grid.device)
        before = (frame - 1).clamp_min(0)
        earlier = table[before, row, column]
        same = (frame > 0) & (high[frame] == high[before]) & (wide[frame] == wide[before])
        return earlier.clamp_min(0), same & (earlier >= 0)
