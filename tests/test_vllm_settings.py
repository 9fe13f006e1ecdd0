"""What a request to vLLM may ask for, without vLLM."""

from __future__ import annotations

import pytest
import torch

import dart

settings = pytest.importorskip("dart_vllm.settings")


@pytest.mark.parametrize("strategy", settings.STRATEGIES)
def test_the_choice_is_that_of_dart_on_the_features_alone(strategy: str) -> None:
    features = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    config = settings.config_of({"keep": 20, "strategy": strategy, "seed": 3})
    rows = settings.chosen(features, config)
    expected = dart.select(features, features[None], torch.ones(50, dtype=torch.bool), config)
    assert rows.tolist() == expected.tolist()
    assert len(rows) == settings.kept_count(config, 50) < 50


def test_a_share_counts_for_every_image_by_itself() -> None:
    config = settings.config_of({"keep": 0.25, "strategy": "spread"})
    assert [settings.kept_count(config, tokens) for tokens in (100, 40, 1)] == [25, 10, 1]


def test_a_budget_above_the_image_keeps_everything() -> None:
    config = settings.config_of({"keep": 64})
    assert settings.chosen(torch.randn(10, 4), config).tolist() == list(range(10))


def test_nothing_asked_for_is_nothing_dropped() -> None:
    assert settings.config_of(None) is settings.config_of(False) is None
    assert settings.kept_count(None, 7) == 7


@pytest.mark.parametrize(
    "asked",
    [
        {"keep": 0.3, "strategy": "divprune", "exact": True, "seed": 5},
        {"keep": 12, "strategy": "spread", "options": {"rounds": 3}},
        {"reduction_ratio": 0.778},
        None,
    ],
)
def test_settings_survive_the_way_through_vllm(asked: dict | None) -> None:
    config = settings.config_of(asked)
    assert settings.unpacked(settings.packed(config)) == config


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("much", "must be an object"),
        (True, "must be an object"),
        ({}, "needs keep"),
        ({"keep": 1.5}, "between 0 and 1"),
        ({"keep": -1}, "0 or more"),
        ({"keep": "64"}, "keep must be an int"),
        ({"keep": 64, "reduction_ratio": 0.5}, "give one of them"),
        ({"keep": 64, "strategy": "fastv"}, "strategy must be one of"),
        ({"keep": 64, "strategy": None}, "strategy must be one of"),
        ({"keep": 64, "layer": 2}, "no field layer"),
        ({"keep": 64, "options": {"x": 1}}, "no option x"),
        ({"keep": 64, "options": 3}, "options must be a dict"),
        ({"keep": 64, "strategy": "divprune", "options": {"layer": 2}}, "inside the language model"),
        ({"keep": 64, "image_pivots": 0}, "at least one pivot"),
    ],
)
def test_a_bad_request_is_one_line(asked: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        settings.config_of(asked)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("dart")
