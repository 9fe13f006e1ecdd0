"""`dart.select` and `DartConfig` beyond the recorded cases."""

from __future__ import annotations

import pytest
import torch
from conftest import no_host_sync

import dart

S, START, N = 90, 11, 60


def inputs(seed: int = 0, length: int = S):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[START : START + N] = True
    hidden = torch.randn(length, 32, generator=generator)
    return hidden, torch.randn(4, length, 8, generator=generator), mask


def naive(hidden, keys, mask, take, images=4, texts=4):
    """The definition, one token at a time, in float64."""
    hidden, norms = hidden.double(), keys.double().abs().sum((0, 2)).tolist()
    visual = [p for p in range(len(mask)) if mask[p]]
    text = list(range(visual[-1] + 1, len(mask)))
    own = sorted(visual, key=lambda p: -norms[p])[:images]
    kept = set(own)
    for pivot in own + sorted(text, key=lambda p: -norms[p])[:texts]:
        unit = hidden[pivot] / hidden[pivot].norm()
        scores = {p: float(unit @ hidden[p] / hidden[p].norm()) for p in visual if p not in kept}
        kept |= set(sorted(scores, key=scores.__getitem__)[:take])
    return sorted(kept)


@pytest.mark.parametrize("keep", [8, 17, 32])
def test_norm_order_follows_the_definition(keep):
    hidden, keys, mask = inputs()
    assert dart.select(hidden, keys, mask, dart.DartConfig(keep=keep)).tolist() == naive(hidden, keys, mask, keep // 8)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("strategy", ["dart", "random", "uniform"])
def test_no_host_sync_with_norm_order(monkeypatch, batched, strategy):
    hidden, keys, mask = inputs()
    if batched:
        hidden, keys, mask = hidden.expand(2, -1, -1), keys.expand(2, -1, -1, -1), mask.expand(2, -1)
    config = dart.DartConfig(keep=24, strategy=strategy)
    plain = dart.select(hidden, keys, mask, config)
    with no_host_sync(monkeypatch):
        kept = dart.select(hidden, keys, mask, config)
        with pytest.raises(AssertionError):
            kept.sum().item()
    assert torch.equal(kept, plain)


def test_batches_equal_their_rows_and_uneven_counts_come_as_a_list():
    rows = [inputs(seed) for seed in (1, 2)]
    stacked = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    config = dart.DartConfig(keep=0.5)
    both = dart.select(*stacked, config)
    assert isinstance(both, torch.Tensor)
    for row, single in zip(both, rows, strict=True):
        assert torch.equal(row, dart.select(*single, config))
    stacked[2][1, START:40] = False
    uneven = dart.select(*stacked, config)
    assert [len(row) for row in uneven] == [config.num_kept(60), config.num_kept(31)]


@pytest.mark.parametrize("strategy", ["dart", "random", "uniform"])
@pytest.mark.parametrize(
    "options", [{"keep": 20}, {"keep": 0.3}, {"keep": 21, "exact": True}, {"reduction_ratio": 0.9}]
)
def test_every_strategy_keeps_the_stated_number(strategy, options):
    config = dart.DartConfig(strategy=strategy, **options)
    kept = dart.select(*inputs(), config)
    exact = strategy != "dart" and config.exact is None
    assert len(kept) == (int(config.budget(N)) if exact else config.num_kept(N)) and kept.dtype == torch.long
    assert (kept.diff() > 0).all() and inputs()[2][kept].all()


def test_random_depends_on_the_seed_alone():
    config = dart.DartConfig(keep=20, strategy="random", seed=1)
    first = dart.select(*inputs(1), config)
    assert torch.equal(first, dart.select(*inputs(2), config))
    assert not torch.equal(first, dart.select(*inputs(1), dart.DartConfig(keep=20, strategy="random", seed=2)))


def test_uniform_is_even():
    gaps = dart.select(*inputs(), dart.DartConfig(keep=11, image_pivots=4, strategy="uniform")).diff()
    assert int(gaps.max() - gaps.min()) <= 1


@pytest.mark.parametrize(
    ("options", "count", "kept"),
    [
        ({"keep": 128}, 576, 132),
        ({"keep": 320}, 2880, 324),
        ({"keep": 0.222}, 576, 124),
        ({"reduction_ratio": 0.778}, 576, 124),
        ({"keep": 128, "exact": True}, 576, 128),
        ({"keep": 3, "exact": True}, 576, 3),
        ({"keep": 128}, 100, 100),
        ({"keep": 128}, 128, 128),
        ({"keep": 7}, 576, 4),
        ({"keep": 7, "image_pivots": 0}, 576, 4),
        ({"keep": 1, "image_pivots": 0}, 576, 1),
        ({"reduction_ratio": 0.0}, 36, 36),
        ({"reduction_ratio": 1.0}, 36, 4),
    ],
)
def test_num_kept(options, count, kept):
    assert dart.DartConfig(**options).num_kept(count) == kept


@pytest.mark.parametrize("texts", [0, 1, 3])
def test_fewer_text_tokens_than_pivots_share_the_budget(texts):
    hidden, keys, mask = inputs(length=START + N + texts)
    kept = dart.select(hidden, keys, mask, dart.DartConfig(keep=24))
    assert kept.tolist() == naive(hidden, keys, mask, 24 // (4 + texts), texts=texts)


def test_no_pivot_at_all_falls_back_to_one_of_the_picture():
    config = dart.DartConfig(keep=10, image_pivots=0)
    hidden, keys, mask = inputs(length=START + N)
    assert dart.select(hidden, keys, mask, config).tolist() == naive(hidden, keys, mask, 10, images=1, texts=0)


def test_no_visual_tokens():
    hidden, keys, mask = inputs()
    assert dart.select(hidden, keys, torch.zeros_like(mask), dart.DartConfig()).tolist() == []


def test_forced_pivots_and_their_errors():
    hidden, keys, mask = inputs()
    config = dart.DartConfig(keep=8)
    assert {20, 30} <= set(dart.select(hidden, keys, mask, config, pivots=[20, 80, 30]).tolist())
    one, other = (dart.select(hidden, keys, mask, config, pivots=p).tolist() for p in ([20, 80], [80, 20]))
    assert len(one) == len(other) == 9
    with pytest.raises(ValueError, match=r"pivots \[2\]"):
        dart.select(hidden, keys, mask, config, pivots=[2, 20])
    with pytest.raises(ValueError, match="different positions"):
        dart.select(hidden, keys, mask, config, pivots=[20, 20])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"keep": 1.5}, ValueError, "fraction"),
        ({"keep": 0.0}, ValueError, "fraction"),
        ({"keep": -1}, ValueError, "keep"),
        ({"keep": "128"}, TypeError, "keep"),
        ({"keep": True}, TypeError, "keep"),
        ({"reduction_ratio": 1.5}, ValueError, "reduction_ratio"),
        ({"keep": 5, "reduction_ratio": 0.5}, ValueError, "both"),
        ({"layer": -1}, ValueError, "layer"),
        ({"layer": 2.0}, TypeError, "layer"),
        ({"image_pivots": 0, "text_pivots": 0}, ValueError, "at least one pivot"),
        ({"pivot_order": "max"}, ValueError, "norm, original"),
        ({"scope": "all"}, ValueError, "span, joint"),
    ],
)
def test_bad_settings_are_named(options, error, text):
    with pytest.raises(error, match=text):
        dart.DartConfig(**options)


def test_the_original_dictionary():
    config = dart.DartConfig.from_original(
        {"K": 3, "image_token_start_index": 35, "image_token_length": 576, "max_num_trunction": 64}
    )
    assert (config.layer, config.keep, config.pivot_order) == (3, 64, "original")
    with pytest.raises(ValueError, match="max_tokens.*known.*max_num_trunction"):
        dart.DartConfig.from_original({"max_tokens": 3})


@pytest.mark.parametrize("change", ["dtype", "shape", "type"])
def test_bad_inputs_are_named(change):
    hidden, keys, mask = inputs()
    bad = {"dtype": mask.long(), "shape": mask[:5], "type": mask.tolist()}[change]
    with pytest.raises((TypeError, ValueError), match="visual_mask"):
        dart.select(hidden, keys, bad, dart.DartConfig())


def test_an_unknown_strategy_is_named_with_the_nearest():
    config = dart.DartConfig(strategy="unifrom")
    with pytest.raises(ValueError, match="did you mean uniform"):
        dart.select(*inputs(), config)
    with pytest.raises(TypeError, match="subclass of dart.strategies.Strategy"):
        dart.strategies.register("mine")(object)


def test_a_strategy_of_ones_own_and_a_taken_name():
    @dart.strategies.register("first-tokens")
    class First(dart.strategies.Strategy):
        def reduce(self, tokens):
            return dart.strategies.Reduction(tokens.visual[: tokens.keep])

    class Other(First):
        pass

    try:
        kept = dart.select(*inputs(), dart.DartConfig(keep=16, strategy="first-tokens"))
        assert kept.tolist() == list(range(START, START + 16))
        dart.strategies.register("first-tokens")(First)  # as a notebook's cell does that is run again
        with pytest.raises(ValueError, match="already registered"):
            dart.strategies.register("first-tokens")(Other)
    finally:
        dart.strategies.base.REGISTRY.pop("first-tokens")
