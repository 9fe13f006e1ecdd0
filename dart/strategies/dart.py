"""DART's selection (arXiv 2502.11494, section 3): pivots by key norm, then the tokens that resemble them least."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from dart.config import DartConfig
from dart.strategies.base import Pool, register

COSINE_EPS = 1e-8
CPU_BLOCK_ROWS = 512
NORM_PIECES = 8


def visiting_order(pivots: torch.Tensor, order: str) -> torch.Tensor:
    """`norm`: as given. `original`: as CPython iterates a set of these ints (one host read of a few numbers)."""
    if order == "norm":
        return pivots
    return torch.tensor(list(set(pivots.cpu().numpy().tolist())), dtype=torch.long).to(pivots.device)


def similarities(pivots: torch.Tensor, hidden: torch.Tensor, visual: torch.Tensor, faithful: bool) -> torch.Tensor:
    """Cosine similarity [P, N] of every pivot [P, D] to every visual token (LongTensor [N] of rows of `hidden` [S, D]).

    One matrix product of the normalised rows. `faithful` rounds step by step in the model's own half precision, as the
    research code does: with thousands of near ties there, only the same rounding gives the same tokens.
    """
    if faithful and hidden.dtype != torch.float32:
        chosen = normalize(pivots, dim=-1, eps=COSINE_EPS)
        parts = (normalize(part, dim=-1, eps=COSINE_EPS) for part in _row_blocks(hidden))
        products = torch.cat([torch.stack([(row * part).sum(-1) for row in chosen]) for part in parts], 1)
        return products.index_select(-1, visual)
    chosen = normalize(pivots.float(), dim=-1, eps=COSINE_EPS)
    # All of `hidden` is multiplied where it lies: picking the visual rows first would copy the largest operand. It
    # stays in half precision; the product accumulates in float32, and the norms divide afterwards.
    products = (chosen.to(hidden.dtype) @ hidden.T).float() / _row_norms(hidden).clamp_min(COSINE_EPS)
    return products.index_select(-1, visual)


def _row_blocks(rows: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Views of `rows` along `dim`: on a CPU small ones, so that temporaries stay in its cache; elsewhere the whole."""
    return rows.split(CPU_BLOCK_ROWS, dim) if rows.device.type == "cpu" else (rows,)


def _row_norms(hidden: torch.Tensor) -> torch.Tensor:
    """float32 L2 norms [S] of the rows of `hidden` [S, D].

    From the norms of pieces of each row: reducing in half precision rounds every result, pieces average that out to
    less than the product's own rounding, and a conversion of all of `hidden` would take longer than the product.
    """
    pieces = next(n for n in (NORM_PIECES, 1) if hidden.shape[-1] % n == 0)
    parts = torch.linalg.vector_norm(hidden.unflatten(-1, (pieces, -1)), dim=-1)
    return torch.linalg.vector_norm(parts.float(), dim=-1)


def key_norms(keys: torch.Tensor) -> torch.Tensor:
    """The paper's K-norm [S] of `keys` [H, S, Dh]: L1 over heads and dimensions, in the keys' dtype."""
    return torch.cat([block.abs().sum((0, 2)) for block in _row_blocks(keys, 1)])


@register("dart")
class Dart:
    """Equations of section 3.2: each pivot in turn takes the least similar of the tokens nobody took yet."""

    def __call__(self, pool: Pool, config: DartConfig) -> torch.Tensor:
        visual = pool.visual
        if pool.forced is not None:
            pivots = torch.tensor(pool.forced, dtype=torch.long, device=visual.device)
            own = torch.isin(visual, pivots).int().topk(pool.image_pivots).indices
        else:
            norms = key_norms(pool.keys[:, pool.rows]).index_select(0, visual - pool.first_row)
            own = norms.topk(pool.image_pivots).indices
            texts = key_norms(pool.keys.index_select(1, pool.text)).topk(len(pool.takes) - pool.image_pivots).indices
            pivots = visiting_order(torch.cat([visual[own], pool.text[texts]]), config.pivot_order)
        kept = [visual[own]]
        left = visual[_rest(visual.numel(), own)]
        chosen, rows = pool.hidden.index_select(0, pivots), pool.hidden[pool.rows]
        scores = similarities(chosen, rows, left - pool.first_row, faithful=config.pivot_order == "original")
        for row, take in enumerate(pool.takes):
            # Ties are torch.topk's over the tokens that are left, in ascending order, as in the research code.
            picks = scores[row].neg().topk(take).indices
            kept.append(left[picks])
            if row + 1 < len(pool.takes):
                rest = _rest(left.numel(), picks)
                left, scores = left[rest], scores.index_select(-1, rest)
        return torch.cat(kept)


def _rest(count: int, gone: torch.Tensor) -> torch.Tensor:
    """0 ... count - 1 without `gone` (different indices), ascending; no sizes are read from the device."""
    # The k-th of the gone, in ascending order, has (itself - k) survivors in front.
    survivors = gone.sort().values - torch.arange(gone.numel(), device=gone.device)
    index = torch.arange(count - gone.numel(), device=gone.device)
    return index + torch.searchsorted(survivors, index, right=True)
