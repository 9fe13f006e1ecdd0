"""The tables of docs/beyond-dart.md: intervals, and which answers are compared."""

from __future__ import annotations

import pytest

from dev.results import beyond_table as table

RESULTS = {
    "cells": {
        "m/t/1/unpruned/all": {"right": "1111"},
        "m/t/1/spread/12": {"right": "1110"},
        "m/t/2/spread/12": {"right": "1111"},
        "m/t/1/dart/12": {"right": "1000"},
        "m/t/1/dart/6": {"right": "0000"},
        "m/t/1/dart/mean-200": {"right": "0000"},
    }
}


def test_differences_are_of_the_same_questions():
    assert table.difference("1110", "1110") == (0.0, 0.0, 0.0)
    mean, low, high = table.difference("1" * 30 + "0" * 70, "0" * 100)
    assert mean == pytest.approx(0.3) and low == pytest.approx(0.21, abs=0.02) and high == pytest.approx(0.39, abs=0.02)


def test_only_samples_that_both_answered_are_compared():
    lines = table.differences(RESULTS, ["dart", "random", "spread"]).splitlines()
    assert lines[0] == "| spread less | 12 tokens |"
    assert lines[2:] == [lines[2]] and lines[2].startswith("| dart | +50.0 (") and lines[2].endswith("n = 4 |")


def test_accuracy_has_a_column_for_each_budget_and_the_unpruned_model_in_all():
    lines = table.accuracy(RESULTS, ["unpruned", "dart", "random"]).splitlines()
    assert lines[0] == "| strategy | 12 tokens | 6 tokens |" and lines[2] == "| *m, t* |  |  |"
    assert lines[3].count("100.0 (51 to 100)") == 2 and lines[4].startswith("| dart | 25.0 (5 to 70) | 0.0 (0 to 49) |")
    assert len(lines) == 5
