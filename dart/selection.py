"""`select`: from hidden states, keys and the visual mask of one layer to the positions of the kept visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dart import strategies
from dart.config import DartConfig
from dart.strategies.base import Pool


def _host(tensor: torch.Tensor) -> np.ndarray:
    """One transfer of a small tensor; it happens before a selection, never inside."""
    return tensor.detach().cpu().numpy()


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
    spans = _host(visual_mask).astype(np.int64)
    if hidden.ndim == 2:
        return select_row(hidden, keys, spans, None, config, pivots)
    rows = [select_row(h, k, m, None, config, pivots) for h, k, m in zip(hidden, keys, spans, strict=True)]
    return torch.stack(rows) if len({len(r) for r in rows}) == 1 else rows


def select_row(
    hidden: torch.Tensor,
    keys: torch.Tensor,
    spans: np.ndarray,
    valid: np.ndarray | None,
    config: DartConfig,
    pivots: Sequence[int] | None = None,
) -> torch.Tensor:
    """One sample. spans: int [S] on the host, 0 = text, k = visual span k; valid: bool [S], False = padding."""
    if valid is not None and valid.any() and not valid[0]:
        # Without the padding in front: pivot_order="original" depends on the positions a sample has alone.
        start = int(valid.argmax())
        moved = None if pivots is None else [p - start for p in pivots]
        return select_row(hidden[start:], keys[:, start:], spans[start:], valid[start:], config, moved) + start
    device = hidden.device
    visual = np.flatnonzero(spans)
    if visual.size == 0:
        return torch.empty(0, dtype=torch.long, device=device)
    after = np.arange(visual[-1] + 1, spans.size)
    text = after if valid is None else after[valid[after]]
    strategy = strategies.get(config.strategy)
    kept = []
    for positions, budget in _pools(visual, spans, config):
        forced = None
        if pivots is None:
            count, images, takes = config.plan(positions.size, budget, text.size)
        else:
            forced = _forced(pivots, visual, positions, text)
            images = int(np.isin(forced, positions).sum())
            counts = replace(config, image_pivots=images, text_pivots=len(forced) - images)
            count, images, takes = counts.plan(positions.size, budget)
        pool_visual, pool_text = torch.from_numpy(positions).to(device), torch.from_numpy(text).to(device)
        if count < positions.size:
            rows = slice(int(positions[0]), int(positions[-1]) + 1)
            pool = Pool(hidden, keys, pool_visual, pool_text, count, images, takes, forced, rows)
            pool_visual = strategy(pool, config)
        kept.append(pool_visual)
    return torch.cat(kept).sort().values


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
