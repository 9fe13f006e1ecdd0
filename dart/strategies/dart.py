"""DART: pivots by key norm, and the tokens that resemble them least (arXiv 2502.11494).

Two arithmetics for one method. `pivot_order="norm"`: float32 whatever the model's dtype is, and of equals the first
token wins, so that every device and the kernels in `dart.kernels` choose alike. `pivot_order="original"`: the research
code's own roundings and ties, which its published numbers rest on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from dart import kernels
from dart.config import DartConfig
from dart.strategies.base import Batch, GroupPlan, Reduction, Strategy, Tokens, register, with_forced
from dart.strategies.fastv import last_query

if TYPE_CHECKING:
    from dart.engine.signals import Signals

COSINE_EPS = 1e-8
DEFAULT_RULE, SMALLEST = "k-norm", "-min"
# Of choosing pivots, and the signals that each needs besides DART's own.
RULES: dict[str, frozenset[str]] = {
    DEFAULT_RULE: frozenset(),
    "k-norm-min": frozenset(),
    "v-norm": frozenset({"values"}),
    "v-norm-min": frozenset({"values"}),
    "attention": frozenset({"attention"}),
    "attention-min": frozenset({"attention"}),
    "random": frozenset(),
}
CPU_BLOCK_ROWS = 256
CPU_STATE_ROWS = 128  # a norm makes several temporaries
INDEX_BITS = 32
SIGN_MASK = 0x7FFFFFFF


def visiting_order(pivots: torch.Tensor) -> torch.Tensor:
    """The original's: as CPython iterates a set of these ints (one host read of a few numbers)."""
    return torch.tensor(list(set(pivots.cpu().numpy().tolist())), dtype=torch.long).to(pivots.device)


def key_norms(keys: torch.Tensor) -> torch.Tensor:
    """The paper's K-norm of `keys` [H, S, Dh]: L1 over heads and dimensions, float32 [S]."""
    if keys.device.type != "cpu":
        return keys.abs().sum((0, 2), dtype=torch.float32)
    heads, tokens, width = keys.shape
    block = torch.empty(min(tokens, CPU_BLOCK_ROWS), heads, width)
    norms = torch.empty(tokens)
    for start in range(0, tokens, CPU_BLOCK_ROWS):
        part = keys[:, start : start + CPU_BLOCK_ROWS].transpose(0, 1)
        rows = block[: len(part)].copy_(part).abs_().flatten(1)
        torch.sum(rows, -1, out=norms[start : start + len(part)])
    return norms


def similarities(pivots: torch.Tensor, states: Signals, rows: slice) -> torch.Tensor:
    """float32 [P, N]: cosine similarity of the states at `pivots` (LongTensor [P]) and `rows`, times the pivot's norm.

    That norm changes no pivot's order of the tokens. Products and norms are those of float32.
    """
    chosen = states.normed(pivots)
    if chosen.device.type != "cpu":
        hidden = states.hidden[rows]
        norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
        return _products(chosen, hidden) / norms.clamp_min_(COSINE_EPS)
    # In blocks: what is normalised and converted stays in the CPU's cache for the product and the norm.
    count, chosen = rows.stop - rows.start, chosen.float()
    block = torch.empty(min(count, CPU_STATE_ROWS), chosen.shape[1])
    products, norms = torch.empty(len(pivots), count), torch.empty(count)
    for start in range(0, count, CPU_STATE_ROWS):
        stop = min(start + CPU_STATE_ROWS, count)
        part = states.normed(slice(rows.start + start, rows.start + stop))
        part = part if part.dtype == torch.float32 else block[: stop - start].copy_(part)
        products[:, start:stop] = chosen @ part.T
        torch.linalg.vector_norm(part, dim=-1, out=norms[start:stop])
    return products / norms.clamp_min_(COSINE_EPS)


def _products(pivots: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """float32 [P, S] on a device, without a float32 copy of `hidden`."""
    if hidden.dtype == torch.float32:
        return pivots @ hidden.T
    return torch.mm(pivots, hidden.T, out_dtype=torch.float32)


def rounded_similarities(pivots: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Cosine similarity [P, S] in the dtype of `hidden` [S, D], rounded step by step as the research code does.

    With thousands of near ties in half precision, only the same rounding gives the same tokens.
    """
    chosen = normalize(pivots, dim=-1, eps=COSINE_EPS)
    if hidden.dtype == torch.float32:
        return chosen @ hidden.T / torch.linalg.vector_norm(hidden, dim=-1).clamp_min_(COSINE_EPS)
    blocks = hidden.split(CPU_BLOCK_ROWS) if hidden.device.type == "cpu" else (hidden,)
    parts = (normalize(block, dim=-1, eps=COSINE_EPS) for block in blocks)
    return torch.cat([torch.stack([(row * part).sum(-1) for row in chosen]) for part in parts], 1)


def without_ties(scores: torch.Tensor) -> torch.Tensor:
    """LongTensor [..., N] that sorts as the float32 `scores` [..., N] do, equals by their index."""
    bits = (scores + 0.0).view(torch.int32)  # which makes 0.0 of -0.0: they are equal
    ordered = bits ^ ((bits >> (INDEX_BITS - 1)) & SIGN_MASK)
    return (ordered.long() << INDEX_BITS) | torch.arange(scores.shape[-1], device=scores.device)


@register("dart")
class Dart(Strategy):
    """Equations of section 3.2: each pivot in turn takes the least similar of the tokens nobody took yet.

    Before the LLM (layer 0) there are no keys yet: the pivots are those with the largest L1 norms of the embeddings.

    pivots: what they are chosen by, for the paper's ablation: "k-norm", the method's own; "v-norm", the L1 norms of the
        values; "attention", what the last text token attends to in the layer before, mean over heads; each with "-min"
        behind it for the smallest instead of the largest; "random", by `config.seed`. The same rule chooses pivots of
        the image and of the text. All but the first run with torch's operations, whatever DART_KERNELS says.
    """

    needs = frozenset({"hidden", "keys"})
    options = {"pivots": DEFAULT_RULE}
    question_aware = True  # by its text pivots

    def needed(self, config: DartConfig) -> frozenset[str]:
        rule = self.option(config, "pivots")
        if rule not in RULES:
            raise ValueError(f"option pivots of strategy 'dart' must be one of {', '.join(RULES)}, got {rule!r}")
        return self.needs | RULES[rule]

    def count(self, config: DartConfig, tokens: int, budget: float, texts: int | None = None) -> int:
        """As the research code counts: 128 keeps 4 + 8 * 16 = 132, unless `exact`."""
        return config.plan(tokens, budget, texts)[0]

    def reduce(self, tokens: Tokens) -> Reduction:
        visual, plan, keys = tokens.visual, tokens.plan, tokens.signals.keys
        faithful, first = tokens.config.pivot_order == "original", tokens.rows.start
        images, takes = pivot_plan(tokens.config, plan)
        if plan.forced is not None:
            pivots = torch.tensor(plan.forced, dtype=torch.long, device=visual.device)
            own = torch.isin(visual, pivots).int().topk(images).indices
        else:
            of_visual, of_text = self._importance(tokens)
            own = _largest(of_visual, images, keys.dtype, faithful)
            texts = _largest(of_text, max(len(takes) - images, 0), keys.dtype, faithful)
            pivots = torch.cat([visual[own], tokens.text[texts]])
            if faithful:  # the order rests on the positions that a sample has alone
                pivots = visiting_order(pivots - plan.start) + plan.start
        # All rows are multiplied where they lie: picking the visual ones first would copy the largest operand.
        if not takes:
            return Reduction(visual[own].sort().values)
        if faithful:
            hidden = tokens.signals.hidden
            scores = rounded_similarities(hidden.index_select(0, pivots), hidden[tokens.rows])
        else:
            scores = similarities(pivots, tokens.signals, tokens.rows)
        scores = scores.index_select(-1, visual - first)
        picks = rounds_with_ties(scores, own, takes) if faithful else rounds(without_ties(scores), own, takes)
        return Reduction(visual[torch.cat([own, picks])].sort().values)

    def reduce_batch(self, batch: Batch, config: DartConfig) -> torch.Tensor | None:
        """The same for all token groups of all samples at once, on a GPU; None where `dart.kernels` does not do it."""
        return kernels.select_rows(batch, config) if self.option(config, "pivots") == DEFAULT_RULE else None

    def _importance(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [N], [M] of the visual tokens and of the text: the largest become pivots."""
        rule = self.option(tokens.config, "pivots")
        source, sign = rule.removesuffix(SMALLEST), -1 if rule.endswith(SMALLEST) else 1
        if source == "random":
            generator = torch.Generator().manual_seed(tokens.config.seed)
            sizes = tokens.visual.numel(), tokens.text.numel()
            images, texts = torch.rand(sum(sizes), generator=generator).to(tokens.visual.device).split(sizes)
            return images, texts
        if source == "attention":
            row = tokens.signals.attention_rows(last_query(tokens))[0] * sign
            return row[tokens.visual], row[tokens.text]
        given = tokens.signals.values if source == "v-norm" else tokens.signals.keys
        norms = key_norms(given[:, tokens.rows]).index_select(0, tokens.visual - tokens.rows.start)
        texts = key_norms(given.index_select(1, tokens.text))
        return (norms, texts) if sign > 0 else (-norms, -texts)


def pivot_plan(config: DartConfig, plan: GroupPlan) -> tuple[int, list[int]]:
    """(image pivots, tokens that each visited pivot takes) of a token group."""
    config = with_forced(config, plan.forced, plan.visual)
    return config.plan(plan.visual.size, plan.budget, plan.text.size)[1:]


def _largest(norms: torch.Tensor, count: int, dtype: torch.dtype, faithful: bool) -> torch.Tensor:
    """Indices [count] of the largest `norms` (float32 [N]), falling. `faithful`: rounded to `dtype`, torch's ties."""
    if faithful:
        return norms.to(dtype).topk(count).indices
    return without_ties(norms.neg()).topk(count, largest=False).indices


def rounds(scores: torch.Tensor, own: torch.Tensor, takes: list[int]) -> torch.Tensor:
    """Indices [sum(takes)] of what the pivots take: row k of `scores` (LongTensor [P, N] without ties, written over)
    takes the `takes[k]` lowest that no earlier row took; `own` (LongTensor, the pivots among the tokens) are no one's.
    """
    picks, taken = [own], torch.iinfo(scores.dtype).max
    for row, take in enumerate(takes):
        scores.index_fill_(-1, picks[-1], taken)
        picks.append(scores[row].topk(take, largest=False).indices)
    return torch.cat(picks[1:]) if takes else own[:0]


def rounds_with_ties(scores: torch.Tensor, own: torch.Tensor, takes: list[int]) -> torch.Tensor:
    """The same for float `scores` with ties: torch.topk's over the tokens that are left, ascending, as recorded."""
    left = _rest(scores.shape[-1], own)
    scores, picks = scores.index_select(-1, left), [own[:0]]
    for row, take in enumerate(takes):
        lowest = scores[row].neg().topk(take).indices
        picks.append(left[lowest])
        rest = _rest(left.numel(), lowest)
        left, scores = left[rest], scores.index_select(-1, rest)
    return torch.cat(picks)


def _rest(count: int, gone: torch.Tensor) -> torch.Tensor:
    """0 ... count - 1 without `gone` (different indices), ascending; no sizes are read from the device."""
    # The k-th of the gone, in ascending order, has (itself - k) survivors in front.
    survivors = gone.sort().values - torch.arange(gone.numel(), device=gone.device)
    index = torch.arange(count - gone.numel(), device=gone.device)
    return index + torch.searchsorted(survivors, index, right=True)
