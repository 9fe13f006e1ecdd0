"""The strategy `spread` against a reference of loops, and what must hold of it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import PATCHES, no_host_sync, prompt, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode

import dart

BEFORE, VISUAL, AFTER, WIDTH = 7, 48, 9, 24
OPTIONS = [
    {},
    {"rounds": 3, "ahead": 1},
    {"rounds": None},
    {"mean": False},
    {"distinct": False},
    {"mean": False, "distinct": False, "rounds": 5, "ahead": 2},
    {"norms": 1.0},
    {"norms": -0.5, "rounds": 16},
]


def inputs(seed: int = 0, visual: int = VISUAL, width: int = WIDTH):
    """hidden [S, D], keys [H, S, d], mask [S]; the visual tokens share a direction, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    total = BEFORE + visual + AFTER
    hidden = torch.randn(total, width, generator=generator) + torch.randn(width, generator=generator)
    mask = torch.zeros(total, dtype=torch.bool)
    mask[BEFORE : BEFORE + visual] = True
    return hidden, torch.randn(2, total, 8, generator=generator), mask


def settings(keep: int, **options) -> dart.DartConfig:
    return dart.DartConfig(keep=keep, strategy="spread", options=options)


def reference(hidden, keys, mask, keep, rounds=8, ahead=4, mean=True, distinct=True, norms=0.0):
    """The definition, one token at a time, in Python's float64."""
    visual = [p for p in range(len(mask)) if mask[p]]
    vectors = {p: hidden[p].double().tolist() for p in visual}
    lengths = {p: math.sqrt(math.fsum(x * x for x in v)) for p, v in vectors.items()}
    units = {p: [x / lengths[p] for x in v] for p, v in vectors.items()}
    middle = [math.fsum(units[p][k] for p in visual) / len(visual) for k in range(hidden.shape[1])]

    def cosine(a, b):
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    memory = {p: cosine(units[p], middle) for p in visual}
    quality = {p: 1 - memory[p] if distinct else 1.0 for p in visual}
    if norms:
        sums = {p: float(keys[:, p].double().abs().sum()) for p in visual}
        average = sum(sums.values()) / len(visual)
        spread = math.sqrt(sum((s - average) ** 2 for s in sums.values()) / len(visual))
        for p in visual:
            quality[p] /= 1 + math.exp(-norms * (sums[p] - average) / spread)
    kept: list[int] = []
    rounds = min(rounds or keep, keep)
    for number in range(rounds):
        count = keep // rounds + (number < keep % rounds)
        free = sorted((p for p in visual if p not in kept), key=lambda p: (-quality[p] * (1 - memory[p]), p))
        candidates, scores = free[: count * ahead], {}
        for place, p in enumerate(candidates):
            near = max([memory[p], *(cosine(units[p], units[other]) for other in candidates[:place])])
            scores[p] = quality[p] * (1 - near)
        taken = sorted(candidates, key=lambda p: (-scores[p], candidates.index(p)))[:count]
        if number == 0 and not mean:
            memory = dict.fromkeys(visual, -1.0)
        for p in visual:
            memory[p] = max([memory[p], *(cosine(units[p], units[other]) for other in taken)])
        kept += taken
    return sorted(kept)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("keep", [1, 7, 20, VISUAL - 1])
def test_it_follows_the_definition(keep, options):
    for seed in range(3):
        hidden, keys, mask = inputs(seed)
        kept = dart.select(hidden, keys, mask, settings(keep, **options))
        assert kept.tolist() == reference(hidden, keys, mask, keep, **options)


def test_half_precision_states_are_compared_in_float32():
    hidden, keys, mask = inputs()
    hidden = hidden.bfloat16()
    assert dart.select(hidden, keys, mask, settings(20)).tolist() == reference(hidden, keys, mask, 20)


def test_of_equal_tokens_the_lower_positions_stay():
    hidden, keys, mask = inputs()
    hidden[mask] = hidden[BEFORE].clone()
    for options in ({}, {"rounds": None}, {"distinct": False}):
        kept = dart.select(hidden, keys, mask, settings(10, **options))
        assert kept.tolist() == list(range(BEFORE, BEFORE + 10))


def test_no_token_twice_that_is_kept_already():
    """Of each of 12 different tokens, shown four times, one stays; DART keeps copies."""
    hidden, keys, mask = inputs()
    hidden[mask] = torch.eye(12, WIDTH).repeat(4, 1) + 0.5
    for options in ({}, {"rounds": None}):
        kept = dart.select(hidden, keys, mask, settings(12, **options)) - BEFORE
        assert sorted((kept % 12).tolist()) == list(range(12))
    copies = dart.select(hidden, keys, mask, dart.DartConfig(keep=12, exact=True)) - BEFORE
    assert len(set((copies % 12).tolist())) < 12


def test_few_distinct_tokens_are_found_in_a_background():
    """Four patches of 2 x 2 with directions of their own among a background that fills the rest."""
    generator = torch.Generator().manual_seed(0)
    hidden, keys, mask = inputs(visual=144, width=64)
    common, own = torch.randn(64, generator=generator), torch.randn(4, 64, generator=generator)
    hidden[mask] = common + 0.2 * torch.randn(144, 64, generator=generator)
    corners = (0, 20, 77, 113)
    for direction, corner in zip(own, corners, strict=True):
        for step in (0, 1, 12, 13):
            hidden[BEFORE + corner + step] += direction
    for keep in (4, 8, 16):
        kept = set((dart.select(hidden, keys, mask, settings(keep)) - BEFORE).tolist())
        assert all(kept & {corner, corner + 1, corner + 12, corner + 13} for corner in corners)


def test_neither_text_nor_the_length_of_a_token_matters():
    hidden, keys, mask = inputs()
    kept = dart.select(hidden, keys, mask, settings(13))
    changed = hidden * torch.linspace(0.5, 2, len(hidden))[:, None]
    changed[~mask] = torch.randn(int((~mask).sum()), WIDTH)
    assert torch.equal(kept, dart.select(changed, keys, mask, settings(13)))


def test_batches_and_padding_change_nothing():
    rows = [inputs(seed) for seed in (1, 2)]
    both = dart.select(*(torch.stack(parts) for parts in zip(*rows, strict=True)), settings(13))
    for row, single in zip(both, rows, strict=True):
        assert torch.equal(row, dart.select(*single, settings(13)))
    hidden, keys, mask = rows[0]
    space = torch.randn(5, WIDTH)
    padded = torch.cat([space, hidden]), torch.cat([torch.randn(2, 5, 8), keys], 1), torch.cat([mask[:5] & False, mask])
    assert torch.equal(dart.select(*padded, settings(13)), both[0] + 5)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def test_nothing_as_large_as_tokens_times_tokens():
    visual, width, keep = 1500, 16, 80
    hidden, keys, mask = inputs(visual=visual, width=width)
    with Largest() as seen:
        dart.select(hidden, keys, mask, settings(keep))
    assert seen.elements <= max(len(mask) * width, visual * -(-keep // 8), (4 * -(-keep // 8)) ** 2)


def test_no_wait_for_the_device(monkeypatch):
    hidden, keys, mask = inputs()
    plain = dart.select(hidden, keys, mask, settings(24, norms=1.0))
    with no_host_sync(monkeypatch):
        kept = dart.select(hidden, keys, mask, settings(24, norms=1.0))
    assert torch.equal(kept, plain)


@torch.no_grad()
def test_in_a_model_as_alone():
    """The engine hands over the raw states at layer K: `dart.select` of them keeps the same tokens."""
    model = tiny_llava()
    ids, pixels = prompt(3, 5)
    states = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states[2][0]
    mask = torch.zeros(len(states), dtype=torch.bool)
    mask[3 : 3 + PATCHES] = True
    kept = dart.select(states, torch.zeros(1, len(states), 2), mask, settings(9))
    seen = []
    spread = dart.strategies.get("spread")
    reduce = type(spread).reduce

    def watched(self, tokens):
        seen.append(reduce(self, tokens))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(spread), "reduce", watched)
        with dart.prune(model, settings(9)) as handle:
            model(input_ids=ids, pixel_values=pixels)
    assert handle.last.visual_after == [9] and torch.equal(seen[0].keep, kept)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rounds": 2.5}, {"ahead": 0}, {"ahead": None}, {"rounds": True}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=f"'spread': {next(iter(options))} must be a whole number of 1 or more"):
        dart.select(*inputs(), settings(9, **options))
