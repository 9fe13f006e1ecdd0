"""DART's selection (arXiv 2502.11494, section 3): pivots by key norm, then the tokens that resemble them least."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity, normalize

from dart.config import DartConfig
from dart.strategies.base import Pool, register

COSINE_EPS = 1e-8


def largest_norms(keys: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` of `positions` [N] with the largest L1 key norm, falling. keys: [S, C]; summed in their dtype."""
    norms = keys.index_select(0, positions).norm(p=1, dim=-1)
    return positions[norms.topk(count).indices]


def visiting_order(pivots: torch.Tensor, order: str) -> torch.Tensor:
    """`norm`: as given. `original`: as CPython iterates a set of these ints (one host read of a few numbers)."""
    if order == "norm":
        return pivots
    return torch.tensor(list(set(pivots.cpu().numpy().tolist())), dtype=torch.long).to(pivots.device)


def similarities(hidden: torch.Tensor, pivots: torch.Tensor, visual: torch.Tensor, faithful: bool) -> torch.Tensor:
    """Cosine similarity [P, N] of every pivot to every visual token.

    One matrix product in float32 of the normalised rows; half precision loses nothing in it. `faithful` rounds step by
    step in the model's own half precision, as the research code does: with thousands of near ties there, only the same
    rounding gives the same tokens.
    """
    rows = hidden.index_select(0, visual)
    if faithful and hidden.dtype != torch.float32:
        return torch.stack([cosine_similarity(hidden[p][None], rows, dim=-1, eps=COSINE_EPS) for p in pivots])
    chosen = normalize(hidden.index_select(0, pivots).float(), dim=-1, eps=COSINE_EPS)
    if hidden.dtype == torch.float32:
        return (chosen @ rows.T) / rows.norm(dim=-1).clamp_min(COSINE_EPS)
    # Keep the big operand in half precision: the product accumulates in float32 and the row norms divide afterwards.
    products = (chosen.to(hidden.dtype) @ rows.T).float()
    return products / rows.norm(dim=-1, dtype=torch.float32).clamp_min(COSINE_EPS)


@register("dart")
class Dart:
    """Equations of section 3.2: each pivot in turn takes the least similar of the tokens nobody took yet."""

    def __call__(self, pool: Pool, config: DartConfig) -> torch.Tensor:
        visual = pool.visual
        if pool.forced is not None:
            pivots = torch.tensor(pool.forced, dtype=torch.long, device=visual.device)
            own = visual[torch.isin(visual, pivots).int().topk(pool.image_pivots).indices]
        else:
            own = largest_norms(pool.keys, visual, pool.image_pivots)
            texts = len(pool.takes) - pool.image_pivots
            pivots = visiting_order(torch.cat([own, largest_norms(pool.keys, pool.text, texts)]), config.pivot_order)
        left = _drop(visual, torch.isin(visual, own), own.numel())
        scores = similarities(pool.hidden, pivots, left, faithful=config.pivot_order == "original")
        kept = [own]
        for row, take in zip(range(len(pool.takes)), pool.takes, strict=True):
            # Ties are torch.topk's over the tokens that are left, in ascending order, as in the research code.
            picks = (-scores[row]).topk(take).indices
            kept.append(left[picks])
            taken = torch.zeros_like(left, dtype=torch.bool).index_fill(0, picks, True)
            left, scores = _drop(left, taken, take), _drop(scores, taken, take)
        return torch.cat(kept)


def _drop(values: torch.Tensor, out: torch.Tensor, count: int) -> torch.Tensor:
    """`values` [..., N] without the `count` columns where `out` [N] is True; no sizes are read from the device."""
    order = out.to(torch.uint8).argsort(stable=True)[: out.numel() - count]
    return values.index_select(-1, order)
