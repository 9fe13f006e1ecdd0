"""SparseVLM: fewer and fewer tokens, by the attention of the question's most visual words (arXiv 2410.04417)."""

from __future__ import annotations

import torch

from dart.config import DartConfig
from dart.strategies.base import Merge, Reduction, Stage, Strategy, Tokens, highest, pyramid, register
from dart.strategies.fastv import last_query

PLACES = (3 / 32, 7 / 32, 16 / 32)
FRACTIONS = (238 / 576, 108 / 576, 60 / 576)
HEADS = 14 / 32
RECYCLED = 0.3  # version 1: of the dropped tokens, those that are clustered
PER_CLUSTER = 10


@register("sparsevlm")
class SparseVLM(Strategy):
    """Raters: with the LLM's inputs X_v of the image and X_t of the question, m = mean over the image of
    softmax_t(X_v X_t^T); the question's tokens with m_t > mean(m) rate at all stages. After layers 2, 6 and 15 of 32,
    by the attention A of the layer that has just run, from rater r to token i in head h:

    version 2, the default: a_i = sum over heads of mean_r A_hri / G_ri, where G are the same rows with ones for all
        queries and keys: what the rotation prefers by itself. Summed over the 14 of 32 heads that look most at the
        image: those with the largest sum of it over the image.
    version 1: a_i = mean over heads and raters of A_hri. Of the d dropped tokens, the R = int(0.3 d) + 1 highest are
        merged into C = int(R / 10) + 1 means by density peaks: distances |x_i - x_j| / sqrt(D), density rho_i =
        exp(-mean of the squares of the C smallest, its own 0 among them), delta_i = distance to the nearest denser one
        (of the densest: the largest of all); the C with the highest rho * delta are centres, the others go to the
        nearest. The means are a part of the budget.

    places: the layers as parts of the decoder's depth. fractions: what stays from each on, of the first tokens, times
    one factor that the budget sets. The official code knows four budgets alone, as counts of 576; version 2 has
    300/200/118 for "192", 238/108/60 for "128" (the default's shape), 246/54/28 for "96" and 66/34/20 for "64", whose
    means over the layers are 206.8, 144.1, 113.9 and 81.8. The last one is keep=20 with fractions of (66/576, 34/576,
    20/576). heads: the share of heads that count. `config.layer` is not used.
    Deviations: tokens keep their positions; version 1 renumbers them and puts its means behind the others, here each
    stays at its centre. It adds noise to the densities; here, of equals, the lower position counts as the denser. Which
    heads version 2 takes as the best is our reading. Without text after the image the last visual token rates.
    """

    needs = frozenset({"raw", "attention", "embeddings", "question"})
    options = {"version": 2, "places": PLACES, "fractions": FRACTIONS, "heads": HEADS}

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        version, heads = self.option(config, "version"), self.option(config, "heads")
        if version not in (1, 2) or not 0 < heads <= 1:
            raise ValueError(
                "options of strategy 'sparsevlm': version must be 1 or 2 and heads a share of them, above 0 and up to "
                f"1, got {version!r} and {heads!r}"
            )
        return pyramid("sparsevlm", self.option(config, "places"), self.option(config, "fractions"), layers)

    def reduce(self, tokens: Tokens) -> Reduction:
        raters, visual = self._raters(tokens), tokens.visual
        if self.option(tokens.config, "version") == 1:
            return self._recycled(tokens, tokens.signals.attention_rows(raters).mean(0)[visual])
        weights = tokens.signals.attention_heads(raters)[:, :, visual]
        own = tokens.signals.rotation_rows(raters)[:, visual].clamp_min(torch.finfo(torch.float32).tiny)
        scores = (weights / own).mean(1)
        count = max(1, round(len(scores) * self.option(tokens.config, "heads")))
        scores = scores[highest(scores.sum(1), count)].sum(0)
        return Reduction(visual[highest(scores, tokens.keep)])

    @staticmethod
    def _raters(tokens: Tokens) -> torch.Tensor:
        """LongTensor of positions; chosen at the first stage, and remembered by their distance to the sample's end."""
        question, end = tokens.signals.question, len(tokens.signals.raw)
        if not question.numel():
            return last_query(tokens)
        if "raters" not in tokens.memory:
            embeddings = tokens.signals.embeddings
            scores = embeddings[tokens.visual].float() @ embeddings[question].float().T
            means = scores.softmax(-1).mean(0)
            chosen = question[means > means.mean()]
            tokens.memory["raters"] = (chosen if chosen.numel() else question) - end
        return tokens.memory["raters"] + end

    def _recycled(self, tokens: Tokens, scores: torch.Tensor) -> Reduction:
        """The highest scores, and means of those that come next: `keep` in all."""
        visual, count = tokens.visual, len(tokens.visual)
        strong = next((n for n in range(tokens.keep, 0, -1) if n + _clusters(count - n) <= tokens.keep), 0)
        if not (clusters := tokens.keep - strong):
            return Reduction(visual[:0])
        order = scores.sort(descending=True, stable=True).indices
        kept, next_best = order[:strong], order[strong:][: _recycled(count - strong)].sort().values
        centres, cluster = _density_peaks(tokens.signals.raw[visual[next_best]].float(), clusters)
        keep = torch.cat([kept, next_best[centres]]).sort().values
        places = torch.searchsorted(keep, next_best[centres])
        moved = torch.ones_like(next_best, dtype=torch.bool).index_fill_(0, centres, False)
        shares = 1 / torch.bincount(cluster, minlength=clusters).float()
        own = torch.ones(len(keep), device=visual.device).index_put_((places,), shares)
        merge = Merge(visual[next_best[moved]], places[cluster[moved]], shares[cluster[moved]], own)
        return Reduction(visual[keep], merge)


def _recycled(dropped: int) -> int:
    return int(RECYCLED * dropped) + 1


def _clusters(dropped: int) -> int:
    return _recycled(dropped) // PER_CLUSTER + 1


def _density_peaks(states: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `states` [R, D]: centres, LongTensor [count], ascending; the number of each token's centre, LongTensor [R]."""
    distances = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[1] ** 0.5
    density = (-distances.topk(count, largest=False).values.square().mean(1)).exp()
    places = torch.arange(len(states), device=states.device)
    earlier = places < places[:, None]
    denser = (density > density[:, None]) | ((density == density[:, None]) & earlier)
    delta = torch.where(denser, distances, distances.max()).amin(1)
    centres = highest(delta * density, count)
    cluster = distances[:, centres].argmin(1)
    return centres, cluster.index_put_((centres,), torch.arange(count, device=states.device))
