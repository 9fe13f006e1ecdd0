"""Intervals and counts of a comparison's scores; the rest is in `dart.stats`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dart.stats import wilson

RESAMPLES = 2000
SEED = 0
HALF = 0.5  # a score from here on counts as right


def bootstrap(scores: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean, from `RESAMPLES` resamples (seeded: equal scores, equal interval)."""
    values = np.asarray(scores, dtype=float)
    generator = np.random.default_rng(SEED)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean score: Wilson's where every score is 0 or 1, else the bootstrap's."""
    if all(score in (0.0, 1.0) for score in scores):
        return wilson(int(sum(scores)), len(scores))
    return bootstrap(scores)


def wins_and_losses(scores: Sequence[float], others: Sequence[float]) -> tuple[int, int]:
    """(right here and wrong there, wrong here and right there) of the same samples."""
    pairs = [(a >= HALF, b >= HALF) for a, b in zip(scores, others, strict=True)]
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def relative_average(scores: Sequence[float | None], whole: Sequence[float | None]) -> float | None:
    """Mean over data sets of the score as a percentage of the unpruned model's.

    None where a score is missing, or where the unpruned model scored nothing.
    """
    if not scores or any(score is None for score in scores) or not all(whole):
        return None
    return float(np.mean([100 * s / w for s, w in zip(scores, whole, strict=True)]))  # type: ignore[operator]
