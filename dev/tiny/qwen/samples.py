"""What a training step shows: one image, two images or a short video a row, with questions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dev.tiny.codes import position_features
from dev.tiny.questions import Mix, Question, sample_questions
from dev.tiny.qwen.pictures import MIN_TOKENS, TRAINED_TOKENS, Grid, codes_of, frames_of, sample_grid, scenes_of_size
from dev.tiny.qwen.prompts import Visual, places_of
from dev.tiny.several import FRAMES, VIDEO, drift, sample_of_two, sample_question
from dev.tiny.world import IMAGE_SIZES
from llava.eval.probe.drawing import Scene

KINDS, SHARES = ("one", "two", "video"), (0.6, 0.2, 0.2)
MAX_SHAPES = 4
SMALL_TOKENS = 280  # of each of several images

Look = Callable[[list[list[Scene]], Grid], torch.Tensor]


@dataclass(frozen=True)
class Shown:
    """One visual of every row: `moments` [T][B] scenes (T = 1 for an image), the grid, the first owner's number."""

    moments: list[list[Scene]]
    grid: Grid
    shift: list[int]

    def facts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes float32 [B, T * N, FACTS], owners int64 [B, T * N])."""
        codes, owners = zip(*(codes_of(scenes, self.grid) for scenes in self.moments), strict=True)
        own = torch.cat(owners, 1)
        return torch.cat(codes, 1), torch.where(own >= 0, own + torch.tensor(self.shift)[:, None], own)

    def frames(self) -> torch.Tensor:
        """float32 [T * B, 2, 3, H, W], moment by moment."""
        return torch.cat([frames_of(scenes, self.grid) for scenes in self.moments])

    def visual(self, tokens: torch.Tensor, owners: torch.Tensor, pace: int) -> Visual:
        """tokens [B, T * N, D] -> with their places."""
        times = [pace * k for k in range(len(self.moments))]
        places = places_of(self.grid, times, len(tokens)).to(tokens.device)
        site = torch.from_numpy(position_features(self.grid.rows, self.grid.columns)).flatten(0, 1)
        sites = site.repeat(len(times), 1).expand(len(tokens), -1, -1).to(tokens.device)
        return Visual(tokens, owners, places, sites, max(self.grid.rows, self.grid.columns, times[-1] + 1))


@dataclass(frozen=True)
class Sample:
    kind: str
    shown: list[Shown]
    questions: list[list[Question]]


def sample(rng: random.Random, batch: int, each: int, mix: Mix) -> Sample:
    """`batch` rows with `each` questions; all rows show the same kind of thing at the same size."""
    kind = rng.choices(KINDS, SHARES)[0]
    size = rng.choice(IMAGE_SIZES)
    scenes = scenes_of_size(rng, size, batch, MAX_SHAPES)
    zeros = [0] * batch
    if kind == "one":
        grid = sample_grid(rng, size, (MIN_TOKENS, TRAINED_TOKENS))
        return Sample(kind, [Shown([scenes], grid, zeros)], [sample_questions(s, rng, each, mix) for s in scenes])
    grid = sample_grid(rng, size, (MIN_TOKENS, SMALL_TOKENS))
    if kind == "video":
        # Two frames share a token: the first of them stands for both.
        moments = [list(each) for each in zip(*(drift(s, rng)[:: FRAMES // 2] for s in scenes), strict=True)]
        asked = [[sample_question(s, VIDEO, rng) for _ in range(each)] for s in scenes]
        return Sample(kind, [Shown(moments, grid, zeros)], asked)
    other_size = rng.choice(IMAGE_SIZES)
    others = scenes_of_size(rng, other_size, batch, MAX_SHAPES)
    other = Shown([others], sample_grid(rng, other_size, (MIN_TOKENS, SMALL_TOKENS)), [len(s.things) for s in scenes])
    asked = [[sample_of_two(pair, rng) for _ in range(each)] for pair in zip(scenes, others, strict=True)]
    return Sample(kind, [Shown([scenes], grid, zeros), other], asked)
