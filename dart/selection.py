"""`select`: from hidden states, keys and the visual mask of one layer to the positions of the kept visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

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
            f"hidden {list(hidden.shape)}, keys {list(keys.shape)} and visual_mask {list(mask.shape)} differ in tokens or samples"
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
    order, instead of the norms' choice. The mask is read by the host once at the start (its length decides the sizes);
    with `pivot_order="norm"` nothing else waits for the device. Raises TypeError / ValueError.
    """
    _check(hidden, keys, visual_mask)
    if hidden.ndim == 3:
        rows = [
            select_row(h, k, _host(m).astype(np.int64), None, config, pivots) for h, k, m in zip(hidden, keys, visual_mask, strict=True)
        ]
        return torch.stack(rows) if len({len(r) for r in rows}) == 1 else rows
    return select_row(hidden, keys, _host(visual_mask).astype(np.int64), None, config, pivots)


def select_row(
    hidden: torch.Tensor,
    keys: torch.Tensor,
    spans: np.ndarray,
    valid: np.ndarray | None,
    config: DartConfig,
    pivots: Sequence[int] | None = None,
) -> torch.Tensor:
    """One sample. spans: int [S] on the host, 0 = text, k = visual span k; valid: bool [S], False = padding (None: all)."""
    device = hidden.device
    visual = np.flatnonzero(spans)
    if visual.size == 0:
        return torch.empty(0, dtype=torch.long, device=device)
    after = np.arange(visual[-1] + 1, spans.size)
    text = after if valid is None else after[valid[after]]
    flat = keys.transpose(0, 1).flatten(1)
    strategy = strategies.get(config.strategy)
    kept = []
    for positions, budget in _pools(visual, spans, config):
        count, images, takes = config.plan(positions.size, budget, text.size)
        if not takes and count == positions.size:
            kept.append(torch.from_numpy(positions).to(device))
            continue
        forced = _forced(pivots, positions, text)
        if forced is not None:
            images = sum(p in set(positions.tolist()) for p in forced)
            share = int(budget // len(forced))
            takes, count = [share] * len(forced), images + share * len(forced)
        if not takes:
            takes, images = [], 0
        pool = Pool(
            hidden,
            flat,
            torch.from_numpy(positions).to(device),
            torch.from_numpy(text).to(device),
            count,
            images,
            takes,
            forced,
        )
        kept.append(strategy(pool, config))
    return torch.cat(kept).sort().values


def _forced(pivots: Sequence[int] | None, positions: np.ndarray, text: np.ndarray) -> list[int] | None:
    if pivots is None:
        return None
    forced = [int(p) for p in pivots]
    allowed = {*positions.tolist(), *text.tolist()}
    if outside := [p for p in forced if p not in allowed]:
        raise ValueError(f"pivots {outside} are neither visual tokens nor text after them")
    if len(set(forced)) != len(forced) or not forced:
        raise ValueError("pivots must be one or more different positions")
    return forced


def _pools(visual: np.ndarray, spans: np.ndarray, config: DartConfig) -> list[tuple[np.ndarray, float]]:
    """(positions, budget) of every pool: one a span in proportion to its tokens, or one in all."""
    budget = config.budget(visual.size)
    names = np.unique(spans[visual])
    if config.scope == "joint" or names.size == 1:
        return [(visual, budget)]
    groups = [visual[spans[visual] == name] for name in names]
    shares = [budget * group.size / visual.size for group in groups]
    if config.reduction_ratio is None and isinstance(config.keep, int):
        # Largest remainder, so that whole-token budgets add up to the one asked for.
        whole = [int(s) for s in shares]
        for k in sorted(range(len(shares)), key=lambda k: whole[k] - shares[k])[: int(budget) - sum(whole)]:
            whole[k] += 1
        shares = [float(w) for w in whole]
    return list(zip(groups, shares, strict=True))
