"""What a request, or the server for all of them, asks for: `mm_processor_kwargs={"dart": {"keep": 0.222}}`.

    {"keep": 0.222}                             the share of an image's or video's tokens that stays
    {"keep": 64, "strategy": "spread"}          tokens of each image
    {"keep": 64, "strategy": "random", "seed": 1}
    {"reduction_ratio": 0.889}                  as the research code states it
    false                                       nothing is dropped, whatever the server's default is

An image's tokens are chosen by its features alone: neither the question nor another image is looked at, so that the
cached features of an image serve every question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import dart
from dart.engine.budgets import group_budgets
from dart.utils import UserError

KEY = "dart"
STRATEGIES = ("cenprune", "dart", "divprune", "random", "spread", "uniform")
FIELDS = ("keep", "reduction_ratio", "strategy", "exact", "seed", "image_pivots", "options")
IMAGE_PIVOTS = 8  # of DART: there is no text yet whose tokens could be the other half


def config_of(asked: Any) -> dart.DartConfig | None:
    """The settings of `dart`, None where nothing is to be dropped. Raises ValueError with one line for bad ones."""
    if asked is None or asked is False:
        return None
    if not isinstance(asked, Mapping):
        raise ValueError(f'{KEY} must be an object like {{"keep": 0.222}} or false, got {asked!r}')
    if unknown := sorted(set(asked) - set(FIELDS)):
        raise ValueError(f"{KEY} has no field {', '.join(map(str, unknown))}; known: {', '.join(FIELDS)}")
    if "keep" not in asked and "reduction_ratio" not in asked:
        raise ValueError(f"{KEY} needs keep (tokens, or a share in (0, 1)) or reduction_ratio")
    strategy = asked.get("strategy", "dart")
    if strategy not in STRATEGIES:
        raise ValueError(
            f"{KEY}: strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}: others need the question or "
            "what the vision tower and the language model computed"
        )
    settings = {"image_pivots": IMAGE_PIVOTS, **asked}
    try:
        config = dart.DartConfig(**settings, layer=0, text_pivots=0)
        stages = dart.strategies.get(strategy).stages(config, 1)
        _chosen(torch.eye(2), config)  # options and what the strategy needs
    except (TypeError, ValueError, UserError) as error:
        raise ValueError(f"{KEY}: {error}") from error
    if [stage.layer for stage in stages] != [0]:
        raise ValueError(f"{KEY}: these options put strategy {strategy!r} inside the language model")
    return config


def kept_count(config: dart.DartConfig | None, tokens: int) -> int:
    """How many of an image's `tokens` stay: 1 at least, of which the prompt has a place."""
    if config is None:
        return tokens
    strategy = dart.strategies.get(config.strategy)
    return max(1, min(tokens, strategy.count(config, tokens, config.budget(tokens), 0)))


def shared(config: dart.DartConfig | None, sizes: Sequence[int]) -> list[dart.DartConfig | None]:
    """The settings of every part of one image or video, whose parts have `sizes` tokens: a video's frames where they
    stand apart in the prompt. A budget in tokens is divided by size, as `dart.prune` does, but each part keeps 1."""
    if config is None or not isinstance(config.keep, int):
        return [config] * len(sizes)
    return [replace(config, keep=max(1, int(share))) for share in group_budgets(config, list(sizes))]


def chosen(features: torch.Tensor, config: dart.DartConfig | None) -> torch.Tensor:
    """LongTensor [kept_count] of the rows of `features` [N, D], one image's, that stay; ascending."""
    if kept_count(config, len(features)) == len(features):
        return torch.arange(len(features), device=features.device)
    return _chosen(features, config)


def _chosen(features: torch.Tensor, config: dart.DartConfig | None) -> torch.Tensor:
    everything = torch.ones(len(features), dtype=torch.bool)
    return dart.select(features, features[None], everything, config)  # type: ignore[arg-type, return-value]


def packed(config: dart.DartConfig | None) -> torch.Tensor:
    """uint8 [n]: the settings as a tensor, in which vLLM hands them from the prompt's processor to the model."""
    asked = None
    if config is not None:
        asked = {name: getattr(config, name) for name in FIELDS if getattr(config, name) is not None}
        asked["options"] = dict(config.options)
    return torch.tensor(list(json.dumps(asked, sort_keys=True).encode()), dtype=torch.uint8)


def unpacked(settings: torch.Tensor) -> dart.DartConfig | None:
    return config_of(json.loads(bytes(settings.tolist())))
