"""Small-sample statistics of right and wrong answers: intervals of shares, and a paired test."""

from __future__ import annotations

from statistics import NormalDist

LEVEL = 0.95


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
