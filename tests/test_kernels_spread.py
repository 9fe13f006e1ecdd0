"""The kernels of `spread` against the torch code, through Triton's interpreter, or on the GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import prompt, tiny_llava
from test_spread import OPTIONS, VISUAL, reference, settings
from test_spread import inputs as one_group

import dart
from dart import kernels
from dart.engine.selection import plan_batch

pytest.importorskip("triton")
from test_kernels import DEVICE, LAYOUTS, SETTINGS, assert_same, both, inputs, spans_of  # noqa: E402

from dart.kernels import launch, spread  # noqa: E402

BUDGETS = ("tokens", "joint", "nearly all")


@pytest.mark.parametrize("options", [each for each in OPTIONS if "norms" not in each], ids=str)
@pytest.mark.parametrize("keep", [1, 7, VISUAL - 1])
def test_it_follows_the_definition(use, keep, options):
    use("triton")
    hidden, keys, mask = one_group()
    kept = dart.select(hidden.to(DEVICE), keys.to(DEVICE), mask.to(DEVICE), settings(keep, **options))
    assert kept.tolist() == reference(hidden, keys, mask, keep, **options)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_positions_as_torch(use, layout, budget):
    """Groups of a batch have different numbers of rounds where one keeps fewer than eight tokens."""
    spans, config = spans_of(*LAYOUTS[layout]), dart.DartConfig(strategy="spread", **SETTINGS[budget])
    hidden, keys = inputs(*spans.shape)
    one, other = both(use, hidden, None, keys, spans, None, config)
    if one is None:
        assert other is None
    else:
        assert_same(one, other)


@pytest.mark.parametrize("keep", [1, 12, 0.04])
def test_fewer_tokens_than_rounds_in_some_groups(use, keep):
    spans = spans_of(".aaaaaaaaaaaaaaaaaaaa.b.", ".aa..bbbbbbbbbbbbb...c.c")
    hidden, keys = inputs(*spans.shape)
    config = dart.DartConfig(strategy="spread", keep=keep)
    assert_same(*both(use, hidden, None, keys, spans, None, config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(use, dtype):
    spans = spans_of(".aaaaaaaaaaaaaaaaaaaa.", "..bbbbbbbbbbbbbbb.aaaa")
    hidden, keys = inputs(*spans.shape, dtype)
    assert_same(*both(use, hidden * 3, None, keys, spans, None, dart.DartConfig(strategy="spread", keep=32)))


@pytest.mark.parametrize("options", [{}, {"rounds": None}, {"distinct": False}], ids=str)
def test_of_equal_tokens_the_lower_positions_stay(use, options):
    use("triton")
    hidden, keys = inputs(1, 110)
    hidden[0, 10:90] = hidden[0, 10].clone()
    mask = torch.zeros(1, 110, dtype=torch.bool, device=DEVICE)
    mask[0, 10:90] = True
    assert dart.select(hidden, keys, mask, settings(10, **options))[0].tolist() == list(range(10, 20))


def test_padding_and_ragged_rows(use):
    spans = spans_of("..aaaaaaaa..", ".....aaaaa..", "..aaaa.aaaa.")
    valid = np.ones(spans.shape, dtype=bool)
    valid[1, :33] = False
    hidden, keys = inputs(*spans.shape)
    one, other = both(use, hidden, None, keys, spans, valid, dart.DartConfig(strategy="spread", keep=0.4))
    assert_same(one, other)
    assert len(set(other.widths)) > 1


@pytest.mark.parametrize("small", [{"RANK_LIMIT": 16}, {"RANK_BLOCK": 16, "RANK_ROWS": 16}, {"MAX_SLOTS": 16}])
def test_more_tokens_than_a_block(use, monkeypatch, small):
    for name, value in small.items():
        monkeypatch.setattr(spread if name == "MAX_SLOTS" else launch, name, value)
    spans = spans_of(".aaaaaaaa.bb..", ".aaaaaaaaa....")
    hidden, keys = inputs(*spans.shape)
    config = dart.DartConfig(strategy="spread", keep=50, options={"rounds": 2, "ahead": 3})
    assert_same(*both(use, hidden, None, keys, spans, None, config))


def test_views(use):
    spans, config = spans_of(".aaaaaaaa..", "..aaaa.bbb."), dart.DartConfig(strategy="spread", keep=24)
    hidden, keys = inputs(*spans.shape)
    wide = torch.randn(2, 130, hidden.shape[-1], device=DEVICE)
    wide[:, 15:125] = hidden
    one = both(use, hidden, None, keys, spans, None, config)[0]
    for view in (wide[:, 15:125], hidden.transpose(1, 2).contiguous().transpose(1, 2)):
        assert_same(one, both(use, view, None, keys, spans, None, config)[1])


def test_a_plan_can_be_run_again(use):
    """Nothing of one run is left for the next: what a CUDA graph repeats."""
    use("triton")
    spans, config = spans_of(".aaaaaaaa..", "..aaaa.bbb."), dart.DartConfig(strategy="spread", keep=24)
    (hidden, keys), (others, _) = inputs(*spans.shape), inputs(*spans.shape, seed=1)
    plan = spread.Spreading.of(plan_batch(hidden, None, keys, spans, None, config), 8, 4, True, True)
    first = plan.run(hidden)
    assert not torch.equal(first, plan.run(others)) and torch.equal(first, plan.run(hidden))


def test_the_kernels_are_what_ran(use, monkeypatch):
    """Without the option that they do not know; a model's logits are those of torch's operations."""
    seen, run = [], spread.Spreading.run
    monkeypatch.setattr(spread.Spreading, "run", lambda *args: seen.append("spread") or run(*args))
    model = tiny_llava().to(DEVICE)
    ids, pixels = (each.to(DEVICE) for each in prompt(5, 7))
    config, logits = dart.DartConfig(strategy="spread", keep=6, layer=1), {}
    for mode, expected in (("torch", []), ("triton", ["spread"])):
        use(mode)
        with dart.prune(model, config), torch.no_grad():
            logits[mode] = model(input_ids=ids, pixel_values=pixels).logits
        assert seen == expected
    torch.testing.assert_close(logits["triton"], logits["torch"])
    with dart.prune(model, dart.DartConfig(strategy="spread", keep=6, options={"norms": 1.0})), torch.no_grad():
        model(input_ids=ids, pixel_values=pixels)
    assert seen == ["spread"]
    assert kernels.spread_rows(plan_batch(*_double(), config), 8, 4, True, True) is None


def _double():
    hidden, keys = inputs(1, 110, torch.float64)
    return hidden, None, keys, spans_of(".aaaaaaaa.."), None
