"""Small-sample statistics of right and wrong answers: intervals of scores, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
RIGHT = 0.5  # a score from which an answer counts as right: two of ten people's in VQA


def wilson(right: float, total: int, level: float = LEVEL) -> tuple[float, float]:
    """(low, high): Wilson's score interval of the share `right` / `total`; (0, 1) of nothing.

    right: of `total`, a mean over runs may be no whole number. level: of confidence, in (0, 1). Source: E. B. Wilson,
    JASA 22 (1927): the shares p with |right / total - p| <= z sqrt(p (1 - p) / total). Raises ValueError.
    """
    if total < 0 or not 0 <= right <= total:
        raise ValueError(f"expected 0 <= right <= total, got {right} of {total}")
    if total == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    share = right / total
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = (z2 * (share * (1 - share) / total + z2 / (4 * total**2))) ** 0.5 / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p-value of McNemar's test: how likely is a difference this large or larger, where each of the
    `wins` + `losses` samples that two methods disagree on falls to either side like a fair coin? 1 without any.

    Raises ValueError for negative counts.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"wins and losses must be 0 or more, got {wins} and {losses}")
    flips, term, tail = wins + losses, 1, 0
    for heads in range(min(wins, losses) + 1):  # whole numbers: no underflow, however many flips
        tail += term
        term = term * (flips - heads) // (heads + 1)
    return min(1.0, 2 * tail / 2**flips)


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
    pairs = [(a >= RIGHT, b >= RIGHT) for a, b in zip(scores, others, strict=True)]
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def relative_average(scores: Sequence[float | None], whole: Sequence[float | None]) -> float | None:
    """Mean over data sets of the score as a percentage of the unpruned model's.

    None where a score is missing, or where the unpruned model scored nothing.
    """
    if not scores or any(score is None for score in scores) or not all(whole):
        return None
    return float(np.mean([100 * s / w for s, w in zip(scores, whole, strict=True)]))  # type: ignore[operator]
