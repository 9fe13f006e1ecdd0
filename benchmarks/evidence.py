"""Which strategies keep small evidence, from made-up features alone: `python -m benchmarks.evidence [--keep 64]`.

No weights, a few seconds. Every registered strategy that needs only hidden states, keys, the grid and the question's
tokens takes part; these tokens are random directions: a question that says nothing about the image. The features are
isotropic and the targets clean, so the order of the strategies means more than the numbers.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

import dart
from benchmarks.arguments import check_known, list_of, positive
from benchmarks.output import print_table, publish
from dart.engine.selection import Selector, selector
from dart.engine.signals import Signals
from dart.utils import Parser, UserError, exits_cleanly, one_line, provenance

GRID, WIDTH, HEADS = 24, 256, 4
TEXT = 16  # tokens after the image
BASE, BAND = 1.0, 0.6  # lengths of the direction that all visual tokens share, and of a band's own
LAYERS = 3  # of the decoder that a strategy believes in: enough for a stage at layer 2
GIVEN = frozenset({"raw", "hidden", "keys", "values", "grid", "embeddings", "question"})
PLACEMENT_TRIES = 1000


@dataclass(frozen=True)
class World:
    """Knobs of the features.

    targets: how many, each with a direction of its own; size: tokens per side of each; contrast: length of a target's
    direction; bands: background regions; junk: isolated tokens, each with a direction of its own that nobody asks for;
    noise: expected length of every token's noise.
    """

    targets: int = 6
    size: int = 2
    contrast: float = 1.0
    bands: int = 3
    junk: int = 0
    noise: float = 0.8


WORLDS = {
    "2x2": World(),
    "1x1": World(size=1),
    "weak": World(contrast=0.5),
    "6x6": World(size=6),
    "junk-40": World(junk=40),
}


@dataclass(frozen=True)
class Features:
    """states: float32 [S, WIDTH], visual tokens first; keys: [HEADS, S, WIDTH // HEADS]; owner: int [GRID * GRID], the
    target that a visual token belongs to, -1 for none; junk: bool [GRID * GRID]."""

    states: torch.Tensor
    keys: torch.Tensor
    owner: np.ndarray
    junk: np.ndarray


def _places(world: World, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Corners of targets that do not overlap."""
    fits = world.targets * world.size**2 <= GRID * GRID
    for _ in range(PLACEMENT_TRIES if fits else 0):
        corners = [tuple(rng.integers(0, GRID - world.size + 1, 2).tolist()) for _ in range(world.targets)]
        pairs = ((a, b) for k, a in enumerate(corners) for b in corners[:k])
        if all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= world.size for a, b in pairs):
            return corners
    raise UserError(f"{world.targets} targets of {world.size} x {world.size} tokens have no room on {GRID} x {GRID}")


def features(world: World, seed: int) -> Features:
    """Visual token = shared direction + its band's, its target's or its own as junk + noise. Equal for equal seeds."""
    rng = np.random.default_rng(seed)

    def directions(count: int) -> np.ndarray:
        drawn = rng.standard_normal((count, WIDTH))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    owner, junk = np.full((GRID, GRID), -1), np.zeros(GRID * GRID, dtype=bool)
    for k, (row, column) in enumerate(_places(world, rng)):
        owner[row : row + world.size, column : column + world.size] = k
    owner = owner.ravel()
    shared, bands, own = BASE * directions(1), BAND * directions(world.bands), directions(world.targets)
    own *= world.contrast * BAND
    band = np.arange(GRID).repeat(GRID) * world.bands // GRID
    states = shared + np.where((owner >= 0)[:, None], own[owner], bands[band])
    junk[rng.choice(np.flatnonzero(owner < 0), world.junk, replace=False)] = True
    states[junk] = shared + BAND * directions(world.junk)
    states = np.concatenate([states, directions(TEXT)])
    states += world.noise * rng.standard_normal(states.shape) / WIDTH**0.5
    mixed = states @ rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
    keys = mixed.reshape(-1, HEADS, WIDTH // HEADS).swapaxes(0, 1).copy()
    return Features(torch.from_numpy(states).float(), torch.from_numpy(keys).float(), owner, junk)


def stage_of(name: str, keep: int, seed: int) -> Selector | None:
    """The only stage of a strategy with its defaults; None: it needs more than features, or has several stages."""
    config = dart.DartConfig(keep=keep, strategy=name, exact=True, seed=seed)
    strategy = dart.strategies.get(name)
    if type(strategy).pixels is not dart.strategies.Strategy.pixels or strategy.needed(config) - GIVEN:
        return None
    stages = selector(config, LAYERS)
    return stages[0] if len(stages) == 1 else None


def kept_of(stage: Selector, made: Features) -> np.ndarray:
    """bool [GRID * GRID]: the visual tokens that stay."""
    count = GRID * GRID
    spans = np.zeros((1, len(made.states)), dtype=np.int64)
    spans[0, :count] = 1
    grid = torch.zeros((len(made.states), 4), dtype=torch.long)
    places = torch.arange(count)
    grid[:count, 1], grid[:count, 2] = places // GRID, places % GRID
    question = torch.arange(count, len(made.states))
    given = {"keys": made.keys, "values": made.keys, "grid": grid, "embeddings": made.states, "question": question}
    batch = stage.batch(made.states[None], None, made.keys[None], spans, None)
    rows = stage.run(batch, [Signals(made.states, None, given, stage.config.strategy)]).rows[0]
    return np.isin(np.arange(count), rows.numpy())


def refusal(name: str, keep: int) -> str | None:
    """Why a strategy cannot run here, None for one that can."""
    stage = stage_of(name, keep, 0)
    if stage is None:
        return "it needs a model, made-up features are not enough"
    try:
        kept_of(stage, features(World(), 0))
    except ValueError as error:  # such as one for videos alone
        return one_line(error)
    return None


def measure(stage: Selector, made: Features) -> dict[str, float]:
    """hit: targets of which a token is kept; share: of the targets' tokens; all: whether every target is hit; junk:
    share of the kept tokens; radius: the largest cosine distance of a visual token to the nearest kept one."""
    kept, targets = kept_of(stage, made), range(made.owner.max() + 1)
    hits = [bool(kept[made.owner == k].any()) for k in targets]
    units = normalize(made.states[: GRID * GRID], dim=-1)
    radius = 1 - (units @ units[torch.from_numpy(kept)].T).amax(1).min()
    return {
        "hit": float(np.mean(hits)),
        "share": float(kept[made.owner >= 0].mean()),
        "all": float(all(hits)),
        "junk": float(made.junk[kept].mean()),
        "radius": float(radius),
    }


def table(names: list[str], world: World, keep: int, seeds: int) -> list[dict[str, Any]]:
    """A row of means over the seeds for every strategy; they all can run."""
    made = [features(world, seed) for seed in range(seeds)]
    rows = []
    for name in names:
        stages = [stage_of(name, keep, seed) for seed in range(seeds)]
        found = [measure(stage, own) for stage, own in zip(stages, made, strict=True) if stage is not None]
        means = {key: round(float(np.mean([each[key] for each in found])), 3) for key in found[0]}
        rows.append({"strategy": name, **means})
    return rows


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", type=list_of(str), help="default: all that can run")
    parser.add_argument("--worlds", type=list_of(str), default=list(WORLDS), help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--keep", type=positive, default=64)
    parser.add_argument("--seeds", type=positive, default=40)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    known = dart.strategies.available()
    check_known("--strategies", args.strategies or [], known)
    check_known("--worlds", args.worlds, WORLDS)
    if args.keep >= GRID * GRID:
        raise UserError(f"--keep {args.keep} must be below the {GRID * GRID} visual tokens there are")
    reasons = {name: refusal(name, args.keep) for name in args.strategies or known}
    for name, reason in reasons.items():
        if reason is not None and args.strategies:
            raise UserError(f"--strategies {name}: {reason}")
    names = [name for name, reason in reasons.items() if reason is None]
    rows = []
    for world in tqdm(args.worlds, desc="worlds"):
        for row in table(names, WORLDS[world], args.keep, args.seeds):
            rows.append({"world": world, **row})
    print_table(rows)
    publish({**provenance(), "keep": args.keep, "seeds": args.seeds, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
