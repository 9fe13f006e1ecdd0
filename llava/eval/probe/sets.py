"""The probe sets: those that passed `python -m llava.eval.probe.validate` (docs/data.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llava.eval.probe.scenes import Knobs


@dataclass(frozen=True)
class ProbeSet:
    """knobs: what its images hold; separates: which methods it tells apart, one line. layer: the last one at which
    dropping tests the choice of tokens; behind it, what is asked for has moved into other tokens. local: do the tokens
    that carry the answer give it without the others?"""

    knobs: Knobs
    separates: str
    layer: int = 2
    local: bool = True


SMALL = Knobs(kind="rectangle")  # 2 x 2 tokens: other kinds are not told apart at this size
SETS = {
    "needle-1x1": ProbeSet(replace(SMALL, ask="dot", rows=1, columns=1), "evidence of one token"),
    "needle-1x2": ProbeSet(replace(SMALL, rows=1), "the smallest evidence: chance against every rule"),
    "needle-2x2": ProbeSet(SMALL, "small evidence on a flat ground: diversity finds it, chance does not"),
    "needle-4x4": ProbeSet(replace(SMALL, rows=4, columns=4), "medium evidence: only small budgets lose it"),
    "large": ProbeSet(Knobs(rows=16, columns=16), "control: nearly half of the image, every method must solve it"),
    "bands": ProbeSet(replace(SMALL, ground="bands"), "three flat regions: pivots of one choose another"),
    "regions": ProbeSet(replace(SMALL, ground="regions"), "64 flat regions compete for a diverse choice"),
    "noise": ProbeSet(replace(SMALL, ground="noise"), "every patch of the ground is distinct: who chases outliers"),
    "specks": ProbeSet(replace(SMALL, specks=60), "60 isolated tokens of junk against one target"),
    "bars": ProbeSet(replace(SMALL, bars=3), "a quarter of the tokens is padding"),
    "places": ProbeSet(replace(SMALL, strata=("corner", "top", "bottom", "border")), "bias for a place"),
    "named": ProbeSet(Knobs(rows=3, columns=3, others=3), "three distractors: who looks at the question"),
    "odd": ProbeSet(Knobs(rows=4, columns=4, twins=5), "five equal things and an odd one"),
    "camouflage": ProbeSet(
        Knobs("side", rows=5, columns=5, twins=4, camouflage=True), "a target nearly equal to its neighbours"
    ),
    "details-2": ProbeSet(Knobs("presence", rows=5, columns=5, others=1), "both of two things have to be seen"),
    "details-4": ProbeSet(Knobs("presence", rows=5, columns=5, others=3), "all of four things have to be seen"),
    "text": ProbeSet(Knobs("number", rows=5, columns=7), "two digits of a sign, both have to be read", layer=1),
    "halves": ProbeSet(replace(SMALL, ask="side", rows=3, columns=3), "where a target is: positions", layer=0),
    "identical": ProbeSet(
        Knobs("count", kind="triangle", rows=7, columns=7), "one to three equal things: who drops equals", local=False
    ),
}
SEEDS = (0, 1, 2)


def split_of(name: str, seed: int) -> str:
    """The split's name: the set's own for seed 0."""
    return f"{name}-seed{seed}" if seed else name


def seed_of(split: str) -> tuple[str, int]:
    """(set, seed) of a split's name."""
    name, _, seed = split.partition("-seed")
    return name, int(seed or 0)


SPLITS = tuple(split_of(name, seed) for name in SETS for seed in SEEDS)
