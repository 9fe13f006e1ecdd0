"""Pooling: means of neighbouring tokens (control)."""

from __future__ import annotations

import torch

from dart.config import DartConfig
from dart.strategies.base import Merge, Reduction, Stage, Strategy, Tokens, register


@register("pooling")
class Pooling(Strategy):
    """The grid is cut into `keep` cells that cover it, and each becomes the mean of its tokens, at the place of the
    token nearest to its middle. Frames and tiles lie one under another.

    Cells: about sqrt(keep * rows / columns) bands of rows, the cells of a band equal up to a column, the bands up to a
    cell. A budget of 1 / D^2 of a grid that D divides is average pooling D x D.
    layer: where; 0, before the LLM, or K. `config.layer` is not used.
    """

    needs = frozenset({"grid"})
    options = {"layer": 0}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        return (Stage(int(self.option(config, "layer"))),)

    def reduce(self, tokens: Tokens) -> Reduction:
        visual, count = tokens.visual, tokens.keep
        if count == 0:
            return Reduction(visual[:0])
        line, column, high, wide = self._plane(tokens)
        bands = min(max(round((count * high / wide) ** 0.5), -(-count // wide)), high, count)
        band = line * bands // high
        edges = torch.arange(bands + 1, device=visual.device) * count // bands
        cell = edges[band] + column * edges.diff()[band] // wide
        sizes = torch.bincount(cell, minlength=count).float()
        place = torch.stack([line, column], 1).float()
        middle = torch.zeros(count, 2, device=visual.device).index_add_(0, cell, place) / sizes[:, None]
        order = (place - middle[cell]).square().sum(1).sort(stable=True).indices  # nearest first; then cell by cell
        order = order[cell[order].sort(stable=True).indices]
        centres = order[(sizes.cumsum(0) - sizes).long()]
        keep, rank = centres.sort()
        moved = torch.ones_like(visual, dtype=torch.bool).index_fill_(0, centres, False).nonzero().flatten()
        targets = rank.argsort()[cell[moved]]
        merge = Merge(visual[moved], targets, 1 / sizes[cell[moved]], 1 / sizes[rank])
        return Reduction(visual[keep], merge)

    def _plane(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Lines and columns [N] of the tokens, lines and columns in all; columns are counted among the tokens that are
        there (of tiles without their padding). Raises ValueError for unequal widths."""
        grid = tokens.signals.grid[tokens.visual]
        lines, line, sizes = torch.unique(grid[:, [3, 0, 1]], dim=0, return_inverse=True, return_counts=True)
        wide = int(sizes[0])
        if bool((sizes != wide).any()):
            raise ValueError("strategy 'pooling' cannot pool unequal images together: use scope='span'")
        order = (line * (grid[:, 2].max() + 1) + grid[:, 2]).argsort(stable=True)
        return line, order.argsort() % wide, len(lines), wide
