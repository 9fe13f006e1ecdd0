"""From the signals of one layer to the positions that stay.

The host plans (which positions share a budget, how many of them stay), a strategy chooses. Positions are read from
the device before a selection, never inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from dart import kernels, strategies
from dart.config import DartConfig
from dart.engine.budgets import group_budgets, stage_budget
from dart.engine.host import HostCopy, to_device
from dart.engine.layout import PADDING
from dart.engine.signals import NAMES, Signals, is_signal
from dart.strategies.base import Batch, GroupPlan, Merge, Reduction, Stage, Strategy, Tokens, with_forced


@dataclass(frozen=True)
class Kept:
    """What stays of every sample: LongTensor [B, n] of ascending positions, and how many there are of each.

    A row with fewer than n begins with `PADDING`. merges: per sample what its groups add to kept tokens, as positions.
    """

    rows: torch.Tensor
    widths: list[int]
    merges: list[list[tuple[torch.Tensor, Merge]]] | None = None

    @property
    def ragged(self) -> bool:
        """Do the samples keep different numbers of tokens?"""
        return len(set(self.widths)) > 1


@dataclass(frozen=True)
class Selector:
    """One stage of a strategy on a decoder of `layers` layers."""

    strategy: Strategy
    config: DartConfig
    stages: tuple[Stage, ...]
    index: int
    layers: int
    kernels: str = "torch"

    def batch(
        self,
        hidden: torch.Tensor,
        norm: Any,
        keys: torch.Tensor,
        spans: np.ndarray,
        valid: np.ndarray | None,
        sizes: list[dict[int, int]] | None = None,
        stays: np.ndarray | None = None,
        pivots: Sequence[int] | None = None,
    ) -> Batch:
        """The token groups of every sample from which something goes.

        hidden: [B, S, D], before the final norm `norm` (None: after it); keys: [B, H, S, Dh]; spans: int [B, S] on the
        host, 0 = text, k = visual span k; valid: bool [1 or B, S], False = padding; sizes: per sample, see `_plan`;
        stays: bool [B, S], what there is at all (default: everything).
        """
        always = np.ones(spans.shape, dtype=bool) if stays is None else stays.copy()
        groups = []
        for row, span in enumerate(spans):
            sample = None if valid is None else valid[row % len(valid)]
            groups.append(self._plan(span, sample, None if sizes is None else sizes[row], pivots))
            for group in groups[-1]:
                always[row, group.visual] = False
        return Batch(hidden, norm, keys, groups, always, self.kernels)

    def _plan(
        self,
        spans: np.ndarray,
        valid: np.ndarray | None,
        sizes: dict[int, int] | None,
        pivots: Sequence[int] | None,
    ) -> list[GroupPlan]:
        """The token groups of one sample: spans [S], valid [S]; sizes: tokens that each span had before the first
        stage (default: has now)."""
        visual = np.flatnonzero(spans)
        if visual.size == 0:
            return []
        after = np.arange(visual[-1] + 1, spans.size)
        text = after if valid is None else after[valid[after]]
        start = 0 if valid is None else int(valid.argmax())
        plans = []
        for number, positions, size, asked in self._groups(visual, spans, sizes):
            forced = None if pivots is None else _forced(pivots, visual, positions, text)
            budget = stage_budget(self.config, self.stages, self.index, size, asked, self.layers)
            config = with_forced(self.config, forced, positions)
            keep = self.strategy.count(config, positions.size, budget, text.size)
            if keep < positions.size:
                plans.append(GroupPlan(positions, text, budget, keep, start, forced, number))
        return plans

    def _groups(
        self, visual: np.ndarray, spans: np.ndarray, sizes: dict[int, int] | None
    ) -> list[tuple[int, np.ndarray, int, float]]:
        """(number, positions, first size, tokens asked for) of every group: one per span in proportion to its size, or
        one. numbers: those of the spans, the same at every stage."""
        order = np.argsort(spans[visual], kind="stable")
        parts = np.split(visual[order], np.flatnonzero(np.diff(spans[visual][order])) + 1)
        numbers = [int(spans[part[0]]) for part in parts]
        firsts = [int(part.size) if sizes is None else sizes[n] for n, part in zip(numbers, parts, strict=True)]
        if self.config.scope == "joint" or len(parts) == 1:
            return [
                (
                    0 if self.config.scope == "joint" else numbers[0],
                    visual,
                    sum(firsts),
                    self.config.budget(sum(firsts)),
                )
            ]
        return list(zip(numbers, parts, firsts, group_budgets(self.config, firsts), strict=True))

    @torch.no_grad()
    def run(self, batch: Batch, signals: list[Signals]) -> Kept:
        """What stays of every sample, text included. signals: one for each sample.

        Raises TypeError or ValueError, naming the strategy, for a reduction of another number, order or membership.
        """
        rows = self.strategy.reduce_batch(batch, self.config)
        if rows is not None:
            return Kept(self._checked_rows(rows, batch), batch.widths)
        kept, merges = [], []
        for sample, plans, stays in zip(signals, batch.groups, batch.always, strict=True):
            positions, merged = self._one(sample, plans, stays)
            kept.append(positions)
            merges.append(merged)
        widest = max(batch.widths)
        rows = torch.stack([pad(row, (widest - len(row), 0), value=PADDING) for row in kept])
        return Kept(rows, batch.widths, merges if any(merges) else None)

    def _one(self, signals: Signals, plans: list[GroupPlan], always: np.ndarray) -> Any:
        device = signals.raw.device
        parts, merges = [to_device(np.flatnonzero(always), device)], []
        for plan in plans:
            visual, text = to_device(plan.visual, device), to_device(plan.text, device)
            tokens = Tokens(visual, text, signals, self.config, plan, self.index)
            reduction = self._checked(self.strategy.reduce(tokens), tokens)
            parts.append(reduction.keep)
            if reduction.merge is not None:
                merges.append((reduction.keep, reduction.merge))
        return torch.cat(parts).sort().values, merges

    def _checked_rows(self, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Raises ValueError for a `reduce_batch` that breaks the contract. The kernels' choice is not checked."""
        name, shape = self.config.strategy, (len(batch.groups), max(batch.widths))
        if not isinstance(rows, torch.Tensor) or rows.dtype != torch.long or rows.shape != shape:
            raise TypeError(f"strategy {name!r} must return a LongTensor {list(shape)} from `reduce_batch`")
        if self.kernels != "torch":
            return rows
        for row, width, groups, always in zip(rows, batch.widths, batch.groups, batch.always, strict=True):
            padding, kept = row[: shape[1] - width], row[shape[1] - width :]
            ascending = (padding == PADDING).all() & (kept[:1] >= 0).all() & (kept[1:] > kept[:-1]).all()
            _require(ascending, f"strategy {name!r} must keep different positions, ascending, after {PADDING} in front")
            text = torch.isin(to_device(np.flatnonzero(always), row.device), kept).all()
            _require(text, f"strategy {name!r} dropped text, or other tokens that it was not asked about")
            for group in groups:
                count = torch.isin(to_device(group.visual, row.device), kept).sum()
                message = f"strategy {name!r} must keep {group.keep} visual tokens of a token group"
                _require(count == group.keep, message)
        return rows

    def _checked(self, reduction: Reduction, tokens: Tokens) -> Reduction:
        """Raises ValueError for a strategy that breaks the contract; on a GPU its values are checked there."""
        name = self.config.strategy
        keep = reduction.keep if isinstance(reduction, Reduction) else None
        if not isinstance(keep, torch.Tensor) or keep.dtype != torch.long or keep.ndim != 1:
            raise TypeError(f"strategy {name!r} must return a Reduction with a LongTensor [{tokens.keep}] in `keep`")
        if keep.numel() != tokens.keep:
            raise ValueError(f"strategy {name!r} kept {keep.numel()} visual tokens where it must keep {tokens.keep}")
        message = f"strategy {name!r} must keep different positions of its token group, in ascending order"
        _require((keep[1:] > keep[:-1]).all() & _within(keep, tokens.visual), message)
        if (merge := reduction.merge) is not None:
            message = f"strategy {name!r} must merge dropped tokens of a group into places of `keep`, all weighted"
            count, long = len(merge.sources), torch.long
            shapes = merge.targets.shape == merge.weights.shape == (count,) and merge.own.shape == keep.shape
            if not shapes or merge.sources.dtype != long or merge.targets.dtype != long:
                raise ValueError(message)
            dropped = torch.isin(merge.sources, tokens.visual) & ~torch.isin(merge.sources, keep)
            _require((dropped & (merge.targets >= 0) & (merge.targets < tokens.keep)).all(), message)
        return reduction


def _within(positions: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """bool []: is every one of `positions` in the ascending `group` (not empty)? Ten times as fast as torch.isin."""
    places = torch.searchsorted(group, positions.contiguous()).clamp_(max=len(group) - 1)
    return (group.index_select(0, places) == positions).all()


def _require(good: torch.Tensor, message: str) -> None:
    """Raises ValueError; on a GPU the device itself checks, and nobody waits for it."""
    try:
        torch._assert_async(good, message)
    except RuntimeError as error:  # at once, on a CPU
        raise ValueError(message) from error


def selector(config: DartConfig, layers: int) -> list[Selector]:
    """The strategy's stages, first one first. Raises ValueError for an unknown strategy, option or stage."""
    strategy = strategies.get(config.strategy)
    if unknown := sorted(set(config.options) - set(strategy.options)):
        known = ", ".join(sorted(strategy.options)) or "none"
        raise ValueError(f"strategy {config.strategy!r} has no option {', '.join(unknown)}; known: {known}")
    if unknown := sorted(name for name in strategy.needed(config) if not is_signal(name)):
        raise ValueError(
            f"strategy {config.strategy!r} needs {', '.join(unknown)}, which is no signal; known: {', '.join(NAMES)}"
        )
    stages = tuple(sorted(strategy.stages(config, layers), key=lambda stage: stage.layer))
    if len({stage.layer for stage in stages}) != len(stages):
        raise ValueError(f"strategy {config.strategy!r} has two stages at one layer")
    if len(stages) > 1 and any(stage.fraction is None for stage in stages):
        raise ValueError(f"strategy {config.strategy!r} has several stages: each needs a fraction")
    return [Selector(strategy, config, stages, index, layers, kernels.chosen()) for index in range(len(stages))]


def merge_states(hidden: torch.Tensor, merges: list[list[tuple[torch.Tensor, Merge]]]) -> torch.Tensor:
    """A copy of `hidden` [B, S, D] with dropped tokens added to kept ones, summed in float32; see `Merge`.

    merges: per sample, (LongTensor [kept] of positions, what is added to them) of each token group that merges.
    """
    hidden = hidden.clone()
    for row, merged in enumerate(merges):
        for keep, merge in merged:
            states = hidden[row]
            sums = states[keep].float() * merge.own.float()[:, None]
            added = states[merge.sources].float() * merge.weights.float()[:, None]
            hidden[row, keep] = sums.index_add(0, merge.targets, added).to(hidden.dtype)
    return hidden


def _forced(pivots: Sequence[int], visual: np.ndarray, positions: np.ndarray, text: np.ndarray) -> list[int]:
    """The forced pivots that act on one group (`positions`): its own and the text's. Raises ValueError."""
    forced = [int(p) for p in pivots]
    if outside := [p for p in forced if p not in {*visual.tolist(), *text.tolist()}]:
        raise ValueError(f"pivots {outside} are neither visual tokens nor text after them")
    if len(set(forced)) != len(forced) or not forced:
        raise ValueError(f"pivots must be one or more different positions, got {forced}")
    own = [p for p in forced if p in {*positions.tolist(), *text.tolist()}]
    if not own:
        raise ValueError("every image needs a pivot of its own or of the text after it: none of the pivots is")
    return own


def _check(hidden: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> None:
    for name, value in (("hidden", hidden), ("keys", keys), ("visual_mask", mask)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"visual_mask must be bool, got {mask.dtype}")
    if hidden.ndim not in (2, 3) or keys.ndim != hidden.ndim + 1 or mask.ndim != hidden.ndim - 1:
        raise ValueError(
            "expected hidden [S, D], keys [H, S, Dh], visual_mask [S] (or all with a leading batch dimension), got "
            f"{list(hidden.shape)}, {list(keys.shape)}, {list(mask.shape)}"
        )
    if not hidden.shape[-2] == keys.shape[-2] == mask.shape[-1] or hidden.shape[:-2] != mask.shape[:-1]:
        raise ValueError(
            f"hidden {list(hidden.shape)}, keys {list(keys.shape)} and visual_mask {list(mask.shape)} differ "
            "in tokens or samples"
        )


def select(
    hidden: torch.Tensor,
    keys: torch.Tensor,
    visual_mask: torch.Tensor,
    config: DartConfig,
    *,
    pivots: Sequence[int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """The selection alone, on tensors: positions of the kept visual tokens (arXiv 2502.11494, section 3).

    hidden: [S, D] or [B, S, D], hidden states after the model's final norm, any float dtype.
    keys: [H, S, Dh] or [B, H, S, Dh], keys after RoPE of the layer before, any float dtype.
    visual_mask: bool [S] or [B, S], which tokens are visual: one token group (`config.scope` needs the engine, which
        knows the images).
    config: any strategy that needs hidden states and keys alone.
    pivots: positions to use as pivots, in this visiting order, instead of those with the largest norms.

    Returns a LongTensor [kept], ascending. With a batch dimension, a LongTensor [B, kept], or a list of B LongTensors
    where the samples keep different numbers. The host reads the mask once at the start, since its size decides how many
    tokens stay; with `pivot_order="norm"` nothing else waits for the device.
    Raises TypeError for what is no tensor and for a mask that is not bool, ValueError for wrong shapes, for an unknown
    strategy and for one that needs more than hidden states and keys.
    """
    _check(hidden, keys, visual_mask)
    single = hidden.ndim == 2
    if single:
        hidden, keys, visual_mask = hidden[None], keys[None], visual_mask[None]
    spans = HostCopy(visual_mask).numpy().astype(np.int64)
    stage = _simple(config)
    kept = _run(stage, stage.batch(hidden, None, keys, spans, None, None, spans > 0, pivots))
    rows = [row[kept.rows.shape[1] - width :] for row, width in zip(kept.rows, kept.widths, strict=True)]
    if single:
        return rows[0]
    return rows if kept.ragged else torch.stack(rows)


def select_rows(
    hidden: torch.Tensor, norm: Any, keys: torch.Tensor, spans: np.ndarray, valid: np.ndarray | None, config: DartConfig
) -> Kept | None:
    """What stays, text and padding included, in one stage of hidden states and keys; None: everything.

    The arguments are those of `Selector.batch`.
    """
    stage = _simple(config)
    batch = stage.batch(hidden, norm, keys, spans, valid)
    return None if min(batch.widths) == spans.shape[1] else _run(stage, batch)


def plan_batch(
    hidden: torch.Tensor, norm: Any, keys: torch.Tensor, spans: np.ndarray, valid: np.ndarray | None, config: DartConfig
) -> Batch:
    """What `select_rows` selects from."""
    return _simple(config).batch(hidden, norm, keys, spans, valid)


def _simple(config: DartConfig) -> Selector:
    """The strategy's only stage. Raises ValueError for one that needs more than hidden states and keys."""
    stages = selector(config, config.layer + 1)
    if len(stages) != 1 or stages[0].strategy.needed(config) - {"raw", "hidden", "keys", "question"}:
        raise ValueError(f"only strategies of hidden states and keys can run without a model, not {config.strategy!r}")
    if config.budget_kind == "mean-over-layers":
        raise ValueError("budget_kind='mean-over-layers' needs a model: its number of layers is not known here")
    return stages[0]


def _run(stage: Selector, batch: Batch) -> Kept:
    signals = []
    for states, keys, groups in zip(batch.hidden, batch.keys, batch.groups, strict=True):
        question = to_device(groups[0].text if groups else np.zeros(0, dtype=np.int64), states.device)
        given = {"keys": keys, "question": question}  # without ids, all of the text after the image
        signals.append(Signals(states, batch.norm, given, stage.config.strategy))
    return stage.run(batch, signals)
