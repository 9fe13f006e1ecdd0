"""Properties that hold for any input: plans, masks, layouts, and "a batch = its rows alone"."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, prompt, tiny_llava
from hypothesis import given, settings
from hypothesis import strategies as st

import dart
from dart.engine.budgets import group_budgets, stage_budget
from dart.engine.layout import PADDING, CacheLayout
from dart.engine.masks import gather_mask
from dart.engine.selection import select_rows
from dart.strategies.base import Stage

QUICK = settings(deadline=None, max_examples=60)
FEW = settings(deadline=None, max_examples=10)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@QUICK
@given(
    keep=st.one_of(st.integers(0, 80), st.floats(0.01, 0.99)),
    layout=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30)), min_size=1, max_size=4),
    text=st.integers(0, 6),
    scope=st.sampled_from(["span", "joint"]),
    strategy=st.sampled_from(["dart", "random", "uniform"]),
    exact=st.sampled_from([None, True, False]),
    seed=st.integers(0, 5),
)
def test_what_stays(keep, layout, text, scope, strategy, exact, seed):
    """All text, distinct ascending positions, the number that was planned, and never more than with a larger budget."""
    spans = [[0] * before + [number + 1] * visual for number, (before, visual) in enumerate(layout)]
    spans = np.array([[each for part in spans for each in part] + [0] * text])
    if spans.size == 0:
        return
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, spans.shape[1], 8, generator=generator)
    keys = torch.randn(1, 2, spans.shape[1], 4, generator=generator)
    config = dart.DartConfig(keep=keep, scope=scope, strategy=strategy, exact=exact, image_pivots=2, text_pivots=2)
    kept = select_rows(hidden, None, keys, spans, None, config)
    if kept is None:
        return
    rows = kept.rows[0]
    assert kept.widths == [len(rows)] and (rows[1:] > rows[:-1]).all()
    stays = np.isin(np.arange(spans.shape[1]), rows.numpy())
    assert stays[spans[0] == 0].all()
    visual = int((spans > 0).sum())
    left = int(stays[spans[0] > 0].sum())
    if exact or (exact is None and strategy != "dart"):
        wanted = keep if isinstance(keep, int) else visual * keep
        assert left <= wanted
        assert left > wanted - (1 if scope == "joint" else len(layout)) - 1e-6


@QUICK
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6), keep=st.integers(0, 300))
def test_shares_add_up(sizes, keep):
    shares = group_budgets(dart.DartConfig(keep=keep), sizes)
    assert sum(shares) == keep
    assert all(abs(share - keep * size / sum(sizes)) < 1 for share, size in zip(shares, sizes, strict=True))


@QUICK
@given(
    size=st.integers(10, 600),
    share=st.floats(0.05, 0.95),
    layers=st.integers(4, 40),
    cuts=st.lists(st.integers(0, 39), min_size=1, max_size=3, unique=True),
)
def test_a_mean_over_layers_is_the_mean_over_layers(size, share, layers, cuts):
    stages = [Stage(min(cut, layers - 1), 0.5**k) for k, cut in enumerate(sorted(cuts))]
    stages = tuple({stage.layer: stage for stage in stages}.values())
    asked = size * share
    config = dart.DartConfig(keep=0.5, budget_kind="mean-over-layers")
    if asked < size * stages[0].layer / layers:
        with pytest.raises(ValueError, match="smallest mean"):
            stage_budget(config, stages, 0, size, asked, layers)
        return
    counts = [float(size)] * layers
    for number, stage in enumerate(stages):
        left = stage_budget(config, stages, number, size, asked, layers)
        counts[stage.layer :] = [left] * (layers - stage.layer)
    assert sum(counts) / layers == pytest.approx(asked, rel=1e-6)


@QUICK
@given(
    length=st.integers(1, 12),
    past=st.integers(0, 6),
    padding=st.integers(0, 3),
    seed=st.integers(0, 50),
    boolean=st.booleans(),
)
def test_a_gathered_mask_says_of_each_pair_what_the_mask_said(length, past, padding, seed, boolean):
    generator = torch.Generator().manual_seed(seed)
    full = torch.rand(1, 1, length, past + length, generator=generator) < 0.5
    rows = torch.arange(length)[torch.rand(length, generator=generator) < 0.6]
    old = torch.arange(past)[torch.rand(past, generator=generator) < 0.6]
    rows = torch.cat([torch.full((padding,), PADDING), rows])[None]
    columns = torch.cat([old, torch.where(rows[0] < 0, rows[0], rows[0] + past)])[None]
    mask = full if boolean else torch.zeros(full.shape).masked_fill(~full, torch.finfo().min)
    got = gather_mask(mask, rows, columns, length, past, padding > 0, False)
    got = got if boolean else got == 0
    for q, row in enumerate(rows[0].tolist()):
        for k, column in enumerate(columns[0].tolist()):
            if row >= 0:
                assert bool(got[0, 0, q, k]) == (column >= 0 and bool(full[0, 0, row, column]))
        assert row >= 0 or got[0, 0, q].any(), "a query that holds no token must see something"


@QUICK
@given(slots=st.lists(st.integers(0, 50), min_size=1, max_size=20, unique=True), tail=st.integers(0, 9), seen=st.data())
def test_columns_of_a_layout(slots, tail, seen):
    slots = sorted(slots)
    dropped = slots[-1] + 1 - len(slots)
    layout = CacheLayout(torch.tensor([slots]), dropped, False)
    used = len(slots) + tail
    stored = seen.draw(st.integers(1, used))
    whole = slots + list(range(slots[-1] + 1, slots[-1] + 1 + tail))
    assert layout.columns(used, stored)[0].tolist() == whole[-stored:]


@FEW
@given(
    rows=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2)), min_size=2, max_size=4),
    layer=st.sampled_from([0, 1, 2, 3]),
    keep=st.floats(0.1, 0.9),
    strategy=st.sampled_from(["dart", "random", "uniform"]),
)
def test_a_batch_is_its_rows_alone(model, rows, layer, keep, strategy):
    config = dart.DartConfig(keep=keep, layer=layer, strategy=strategy, image_pivots=2, text_pivots=2)
    made = []
    for number, (before, after, images) in enumerate(rows):
        ids, pixels = prompt(before, after, max(images, 1), seed=number)
        made.append((ids, pixels) if images else (ids[:, :before], None))
    width = max(ids.shape[1] for ids, _ in made)
    ids = torch.cat([torch.nn.functional.pad(ids, (width - ids.shape[1], 0)) for ids, _ in made])
    mask = (ids != 0).long()
    pixels = [each for _, each in made if each is not None]
    given_pixels = {"pixel_values": torch.cat(pixels)} if pixels else {}
    # As `generate` counts them: pivots have the largest norms of keys after RoPE, which depend on where a token is.
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad(), dart.prune(model, config):
        both = model(input_ids=ids, attention_mask=mask, position_ids=places, **given_pixels).logits
        for number, (row, own) in enumerate(made):
            alone = model(input_ids=row, **({} if own is None else {"pixel_values": own})).logits[0]
            torch.testing.assert_close(both[number, -len(alone) :], alone, atol=1e-4, rtol=0)
    assert IMAGE_TOKEN not in ids[:, -1]
