"""DART's selection (arXiv 2502.11494, section 3): pivots by key norm, then the tokens that resemble them least."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Pool, register

COSINE_EPS = 1e-8


def largest_norms(norms: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` of `positions` [N] with the largest of `norms` [S], falling."""
    return positions[norms.index_select(0, positions).topk(count).indices]


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
    half = hidden.dtype != torch.float32
    if faithful and half:
        rows = normalize(hidden.index_select(0, visual), dim=-1, eps=COSINE_EPS)
        chosen = normalize(hidden.index_select(0, pivots), dim=-1, eps=COSINE_EPS)
        return torch.stack([(row * rows).sum(-1) for row in chosen])
    chosen = normalize(hidden.index_select(0, pivots).float(), dim=-1, eps=COSINE_EPS)
    # All of `hidden` is multiplied where it lies: picking the visual rows first would copy the largest operand. It
    # stays in half precision; the product accumulates in float32, and the norms divide afterwards.
    products = (chosen.to(hidden.dtype) @ hidden.T).float() / _row_norms(hidden).clamp_min(COSINE_EPS)
    return products.index_select(-1, visual)


def _row_norms(hidden: torch.Tensor) -> torch.Tensor:
    """float32 L2 norms [S] of the rows of `hidden` [S, D]."""
    return torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)


@register("dart")
class Dart:
    """Equations of section 3.2: each pivot in turn takes the least similar of the tokens nobody took yet."""

    def __call__(self, pool: Pool, config: DartConfig) -> torch.Tensor:
        visual = pool.visual
        # The paper's K-norm: L1 over heads and dimensions, in the keys' dtype.
        norms = pool.keys.abs().sum((0, 2))
        if pool.forced is not None:
            pivots = torch.tensor(pool.forced, dtype=torch.long, device=visual.device)
            own = visual[torch.isin(visual, pivots).int().topk(pool.image_pivots).indices]
        else:
            own = largest_norms(norms, visual, pool.image_pivots)
            texts = len(pool.takes) - pool.image_pivots
            pivots = visiting_order(torch.cat([own, largest_norms(norms, pool.text, texts)]), config.pivot_order)
        left = _drop(visual, torch.isin(visual, own), own.numel())
        scores = similarities(pool.hidden, pivots, left, faithful=config.pivot_order == "original")
        kept = [own]
        for row, take in enumerate(pool.takes):
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
