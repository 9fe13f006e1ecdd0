"""`select`: from hidden states, keys and the visual mask of one layer to the positions of the kept visual tokens.

The host plans (which positions share a budget, how many of them stay), a strategy chooses. Positions are read from
the device before a selection, never inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from dart import strategies
from dart.config import DartConfig
from dart.masks import PADDING
from dart.strategies.base import Batch, Pool, PoolPlan, States
from dart.transfer import HostCopy, to_device


@dataclass(frozen=True)
class Left:
    """What stays of every sample: LongTensor [B, n] of ascending positions, and how many there are of each.

    A row with fewer than n begins with `PADDING`.
    """

    rows: torch.Tensor
    widths: list[int]


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
    """Positions of the kept visual tokens, ascending (LongTensor [kept]).

    hidden: [S, D] hidden states after the model's final norm, any float dtype; keys: [H, S, Dh] keys after RoPE of the
    layer before; visual_mask: bool [S]. With a leading batch dimension: LongTensor [B, kept], or a list of
    LongTensors when the samples keep different numbers. pivots: absolute positions to use as pivots, in this visiting
    order, instead of the norms' choice. The mask is one pool: `config.scope` needs the pruner, which knows the
    pictures. The mask is read by the host once at the start (its size decides how many tokens stay); with
    `pivot_order="norm"` nothing else waits for the device. Raises TypeError / ValueError.
    """
    _check(hidden, keys, visual_mask)
    spans = HostCopy(visual_mask).numpy().astype(np.int64)
    if hidden.ndim == 2:
        return _select_batch(hidden[None], keys[None], spans[None], config, pivots)[0]
    rows = _select_batch(hidden, keys, spans, config, pivots)
    return torch.stack(rows) if len({len(r) for r in rows}) == 1 else rows


def _select_batch(
    hidden: torch.Tensor, keys: torch.Tensor, spans: np.ndarray, config: DartConfig, pivots: Sequence[int] | None
) -> list[torch.Tensor]:
    batch = plan_batch(hidden, None, keys, spans, None, config, pivots)
    batch = replace(batch, always=batch.always & (spans > 0))  # of all positions, the visual ones are asked for
    rows = _batched(batch, config)
    if rows is None:
        return _one_by_one(batch, config)
    return [row[rows.shape[1] - width :] for row, width in zip(rows, batch.widths, strict=True)]


def select_rows(
    hidden: torch.Tensor, norm: Any, keys: torch.Tensor, spans: np.ndarray, valid: np.ndarray | None, config: DartConfig
) -> Left | None:
    """Text and padding stay with the visual tokens that are chosen; None: everything stays.

    hidden: [B, S, D], before the final norm `norm` (None: behind it); keys: [B, H, S, Dh]; spans: int [B, S] on the
    host, 0 = text, k = visual span k; valid: bool [1 or B, S], False = padding.
    """
    batch = plan_batch(hidden, norm, keys, spans, valid, config)
    widths = batch.widths
    if min(widths) == spans.shape[1]:
        return None
    rows = _batched(batch, config)
    if rows is None:
        left = _one_by_one(batch, config)
        rows = torch.stack([pad(row, (max(widths) - len(row), 0), value=PADDING) for row in left])
    return Left(rows, widths)


def plan_batch(
    hidden: torch.Tensor,
    norm: Any,
    keys: torch.Tensor,
    spans: np.ndarray,
    valid: np.ndarray | None,
    config: DartConfig,
    pivots: Sequence[int] | None = None,
) -> Batch:
    """The pools of every sample from which something is dropped; see `select_rows` for the arguments.

    Raises ValueError for forced `pivots` that cannot be.
    """
    always, pools = np.ones(spans.shape, dtype=bool), []
    for row, span in enumerate(spans):
        plans = _plan_pools(span, None if valid is None else valid[row % len(valid)], config, pivots)
        pools.append([plan for plan in plans if plan.kept < plan.visual.size])
        for plan in pools[-1]:
            always[row, plan.visual] = False
    return Batch(hidden, norm, keys, pools, always)


@torch.no_grad()
def _batched(batch: Batch, config: DartConfig) -> torch.Tensor | None:
    batched: Any = getattr(strategies.get(config.strategy), "batched", None)
    return None if batched is None else batched(batch, config)


@torch.no_grad()
def _one_by_one(batch: Batch, config: DartConfig) -> list[torch.Tensor]:
    """LongTensor of the positions that stay, ascending, for each sample."""
    strategy, device = strategies.get(config.strategy), batch.hidden.device
    left = []
    for hidden, keys, plans, always in zip(batch.hidden, batch.keys, batch.pools, batch.always, strict=True):
        states = States(hidden, batch.norm)
        parts = [to_device(np.flatnonzero(always), device)]
        for plan in plans:
            visual, text = to_device(plan.visual, device), to_device(plan.text, device)
            parts.append(strategy(Pool.of(plan, states, keys, visual, text), config))
        left.append(torch.cat(parts).sort().values)
    return left


def _plan_pools(
    spans: np.ndarray, valid: np.ndarray | None, config: DartConfig, pivots: Sequence[int] | None
) -> list[PoolPlan]:
    """The pools of one sample: spans [S], valid [S]."""
    visual = np.flatnonzero(spans)
    if visual.size == 0:
        return []
    after = np.arange(visual[-1] + 1, spans.size)
    text = after if valid is None else after[valid[after]]
    start = 0 if valid is None else int(valid.argmax())
    plans = []
    for positions, budget in _pools(visual, spans, config):
        if pivots is None:
            plans.append(PoolPlan(positions, text, *config.plan(positions.size, budget, text.size), start))
            continue
        forced = _forced(pivots, visual, positions, text)
        images = int(np.isin(forced, positions).sum())
        counts = replace(config, image_pivots=images, text_pivots=len(forced) - images)
        plans.append(PoolPlan(positions, text, *counts.plan(positions.size, budget), start, forced))
    return plans


def _forced(pivots: Sequence[int], visual: np.ndarray, positions: np.ndarray, text: np.ndarray) -> list[int]:
    """The forced pivots that act on one pool (`positions`): its own visual tokens and the text's. Raises ValueError."""
    forced = [int(p) for p in pivots]
    if outside := [p for p in forced if p not in {*visual.tolist(), *text.tolist()}]:
        raise ValueError(f"pivots {outside} are neither visual tokens nor text after them")
    if len(set(forced)) != len(forced) or not forced:
        raise ValueError(f"pivots must be one or more different positions, got {forced}")
    own = [p for p in forced if p in {*positions.tolist(), *text.tolist()}]
    if not own:
        raise ValueError("every picture needs a pivot of its own or of the text after it: none of the pivots is")
    return own


def _pools(visual: np.ndarray, spans: np.ndarray, config: DartConfig) -> list[tuple[np.ndarray, float]]:
    """(positions, budget) of every pool: one a span in proportion to its tokens, or one in all."""
    budget = config.budget(visual.size)
    order = np.argsort(spans[visual], kind="stable")
    groups = np.split(visual[order], np.flatnonzero(np.diff(spans[visual][order])) + 1)
    if config.scope == "joint" or len(groups) == 1:
        return [(visual, budget)]
    shares = [budget * group.size / visual.size for group in groups]
    if config.reduction_ratio is None and isinstance(config.keep, int):
        # Largest remainder, so that whole-token budgets add up to the one asked for.
        whole = [int(s) for s in shares]
        for k in sorted(range(len(shares)), key=lambda k: whole[k] - shares[k])[: int(budget) - sum(whole)]:
            whole[k] += 1
        shares = [float(w) for w in whole]
    return list(zip(groups, shares, strict=True))
