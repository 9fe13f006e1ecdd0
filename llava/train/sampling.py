"""In which order the samples are learned: a function of the seed and the epoch alone, so that a resumed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

Order = Callable[[torch.Generator], list[int]]


class EpochSampler(Sampler[int]):
    """The `size` samples in the order that `order` draws from a generator of (seed, epoch); see `set_epoch`."""

    def __init__(self, size: int, order: Order, seed: int):
        self.size, self.order, self.seed, self.epoch = size, order, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        # The epoch's seed is drawn: seed + epoch would repeat this run's second epoch as the first of the next seed's.
        start = torch.Generator().manual_seed(self.seed)
        seeds = torch.randint(1 << 62, (self.epoch + 1,), generator=start)
        return iter(self.order(torch.Generator().manual_seed(int(seeds[-1]))))


def shuffled(items: Sequence[int], generator: torch.Generator) -> list[int]:
    """The items in a random order."""
    return [items[k] for k in torch.randperm(len(items), generator=generator).tolist()]


def by_modality_and_length(lengths: Sequence[int], batch: int, batches: int, generator: torch.Generator) -> list[int]:
    """LLaVA's order: steps of one modality each, of similar lengths, with equal work for every process.

    lengths: words of each sample, negative for text alone; batch: samples of one process in one forward; batches:
    processes times accumulation, which make one step. The last one or two steps hold what is left of both modalities.
    """
    if not all(lengths):
        raise ValueError("a sample of length 0 has no modality: lengths are positive or, for text alone, negative")
    size = batch * batches
    steps: list[list[int]] = []
    rest: list[int] = []
    for sign in (1, -1):
        members = [k for k, length in enumerate(lengths) if length * sign > 0]
        order = shuffled(members, generator)
        whole = len(order) - len(order) % size
        steps += _chunks(order[:whole], size)
        rest += order[whole:]
    steps = [steps[k] for k in shuffled(range(len(steps)), generator)] + _chunks(shuffled(rest, generator), size)
    return [sample for step in steps for part in _even_parts(step, lengths, batches) for sample in part]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _even_parts(step: list[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """The step's samples in `parts` batches of one size and nearly one length; the longest samples are dealt first."""
    ordered = sorted(step, key=lambda k: abs(lengths[k]), reverse=True)
    if len(ordered) % parts:
        return [ordered[k::parts] for k in range(parts)]
    made: list[list[int]] = [[] for _ in range(parts)]
    for sample in ordered:
        open_parts = [part for part in made if len(part) < len(ordered) // parts]
        min(open_parts, key=lambda part: sum(abs(lengths[k]) for k in part)).append(sample)
    return made
