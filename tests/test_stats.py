"""Intervals and the paired test against values worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from dart.stats import mcnemar, wilson


def test_wilson_by_hand():
    # z^2 = 3.8415, 8 of 10: middle (0.8 + 0.19207) / 1.38415, half sqrt(3.8415 (0.016 + 0.0096037)) / 1.38415
    assert wilson(8, 10) == pytest.approx((0.71673 - 0.22657, 0.71673 + 0.22657), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 3.8415 / 13.8415), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((10 / 13.8415, 1), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(2.5, 10)
    assert wilson(2, 10)[0] < low < high < wilson(3, 10)[1]


def test_wilson_bounds_are_where_the_observed_share_is_z_deviations_off():
    for bound in wilson(37, 91):
        assert abs(37 / 91 - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / 91) ** 0.5, rel=1e-6)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(1, 6) == mcnemar(6, 1) == 2 * (1 + 7) / 128


def test_mcnemar_is_the_share_of_coin_flips_that_differ_as_much():
    for wins, losses in ((2, 7), (4, 6), (9, 1)):
        flips = itertools.product((1, -1), repeat=wins + losses)
        far = sum(abs(sum(row)) >= abs(wins - losses) for row in flips)
        assert mcnemar(wins, losses) == pytest.approx(far / 2 ** (wins + losses))


def test_mcnemar_of_many_flips_does_not_underflow():
    assert 0 < mcnemar(900, 1100) < 1e-5
    assert mcnemar(10_000, 0) == 0  # below the smallest float


@pytest.mark.parametrize("counts", [(-1, 3), (5, 4), (1, -1)])
def test_wilson_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="expected 0 <= right <= total"):
        wilson(*counts)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="must be 0 or more"):
        mcnemar(-1, 2)
