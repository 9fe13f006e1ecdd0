"""The benchmark of made-up features: its bands are a regression test of every strategy that can run on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dart
from benchmarks import evidence
from benchmarks.evidence import GRID, WORLDS, World, features, kept_of, measure, stage_of, table
from dart.utils import UserError

KEEP, SEEDS = 64, 10
# Measured over 40 seeds, and a margin for the 10 seeds of this test: (strategy, world) -> mean of the targets hit.
BANDS = {
    ("dart", "2x2"): (0.60, 0.12),
    ("random", "2x2"): (0.35, 0.12),
    ("uniform", "2x2"): (0.43, 0.12),
    ("divprune", "2x2"): (1.0, 0.0),
    ("random", "1x1"): (0.10, 0.08),
    ("divprune", "1x1"): (1.0, 0.0),
    ("uniform", "6x6"): (1.0, 0.02),
    ("spread", "2x2"): (1.0, 0.0),
    ("mob", "2x2"): (1.0, 0.0),
    ("spread", "1x1"): (1.0, 0.0),
}


@pytest.fixture(scope="module")
def rows():
    names = ["dart", "random", "uniform", "divprune", "spread", "mob"]
    return {
        (row["strategy"], world): row for world in ("2x2", "1x1") for row in table(names, WORLDS[world], KEEP, SEEDS)
    } | {("uniform", "6x6"): table(["uniform"], WORLDS["6x6"], KEEP, SEEDS)[0]}


@pytest.mark.parametrize("cell", BANDS, ids="-".join)
def test_targets_hit_are_in_their_band(rows, cell):
    middle, margin = BANDS[cell]
    assert abs(rows[cell]["hit"] - middle) <= margin


def test_random_hits_as_often_as_combinatorics_say():
    """A target of e tokens is missed with probability C(N - e, k) / C(N, k)."""
    stages = [stage_of("random", KEEP, seed) for seed in range(200)]
    made = features(World(targets=12), 0)
    hits = np.mean([measure(stage, made)["hit"] for stage in stages])
    tokens = GRID * GRID
    missed = np.prod([(tokens - KEEP - i) / (tokens - i) for i in range(4)])
    assert abs(hits - (1 - missed)) < 0.03


def test_features_are_equal_for_equal_seeds_and_what_the_knobs_say():
    world = World(targets=3, size=2, junk=5, bands=2)
    made, again, other = features(world, 1), features(world, 1), features(world, 2)
    assert torch.equal(made.states, again.states) and torch.equal(made.keys, again.keys)
    assert not torch.equal(made.states, other.states)
    assert np.bincount(made.owner + 1).tolist() == [GRID * GRID - 12, 4, 4, 4]
    assert made.junk.sum() == 5 and (made.owner[made.junk] == -1).all()


def test_measures_on_a_choice_made_by_hand():
    """One target, nothing else: with all its tokens but one kept, and no others."""
    made = features(World(targets=1, size=2, bands=1, noise=0.0), 0)
    own = np.flatnonzero(made.owner == 0)

    class Fixed(dart.strategies.Strategy):
        def reduce(self, tokens):
            return dart.strategies.Reduction(torch.from_numpy(own[:3]))

    stage = stage_of("uniform", 3, 0)
    figures = measure(type(stage)(Fixed(), stage.config, stage.stages, 0, stage.layers), made)
    assert figures["hit"] == figures["all"] == 1.0 and figures["share"] == 0.75 and figures["junk"] == 0.0
    target, ground = made.states[own[0]], made.states[np.flatnonzero(made.owner < 0)[0]]
    assert figures["radius"] == pytest.approx(1 - torch.cosine_similarity(target, ground, dim=0).item(), abs=1e-5)


def test_every_strategy_of_features_takes_part_and_no_other():
    found = {name for name in dart.strategies.available() if evidence.refusal(name, KEEP) is None}
    assert {"dart", "divprune", "mob", "pooling", "random", "spread", "uniform"} <= found
    assert not {"fastv", "visionzip", "pyramiddrop", "downsample"} & found
    made = features(WORLDS["junk-40"], 0)
    for name in found:
        assert kept_of(stage_of(name, KEEP, 0), made).sum() == KEEP, name


def test_what_cannot_run_is_refused(capsys):
    for flags, words in (
        (["--strategies", "fastv"], "it needs a model"),
        (["--keep", "576"], "below the 576"),
        (["--worlds", "9x9"], "--worlds must be of"),
    ):
        with pytest.raises(SystemExit) as stop:
            evidence.main(flags)
        assert stop.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(UserError, match="no room"):
        features(World(targets=40, size=4), 0)
