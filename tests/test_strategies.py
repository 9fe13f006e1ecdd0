"""Every registered strategy, by its name: adding a file in dart/strategies is enough to be tested here."""

from __future__ import annotations

import pytest
import torch
from conftest import PATCHES, prompt, tiny_llava

import dart

NAMES = dart.strategies.available()
HALF = {name: dart.DartConfig(keep=0.5, strategy=name) for name in NAMES}
STAGES = {name: dart.strategies.get(name).stages(HALF[name], 4) for name in NAMES}
IN_THE_DECODER = [name for name in NAMES if STAGES[name]]
OF_STATES = {"raw", "hidden", "keys", "question"}
OF_VIDEOS = ["evs"]  # refuse images: tests/test_methods_llm.py
ALONE = [name for name in NAMES if len(STAGES[name]) == 1 and dart.strategies.get(name).needed(HALF[name]) <= OF_STATES]
TEXT_BEFORE, TEXT_AFTER, KEEP = 3, 5, 12


def inputs(tokens: int = 60, visual: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    mask = torch.zeros(tokens, dtype=torch.bool)
    mask[8 : 8 + visual] = True
    return torch.randn(tokens, 16, generator=generator), torch.randn(2, tokens, 8, generator=generator), mask


def test_the_controls_and_the_method_are_there() -> None:
    assert {"dart", "random", "uniform"} <= set(ALONE)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("keep", [8, 12, 0.5])
def test_kept_tokens_are_visual_sorted_and_as_many_as_stated(name: str, keep: int | float) -> None:
    hidden, keys, mask = inputs()
    config = dart.DartConfig(keep=keep, strategy=name)
    kept = dart.select(hidden, keys, mask, config)
    assert kept.dtype == torch.long and mask[kept].all() and (kept.diff() > 0).all()
    assert len(kept) == dart.strategies.get(name).count(config, 40, config.budget(40)) < 40
    assert torch.equal(kept, dart.select(hidden, keys, mask, config))


@pytest.mark.parametrize("name", ALONE)
def test_exactly_as_many_as_asked(name: str) -> None:
    config = dart.DartConfig(keep=KEEP + 1, strategy=name, exact=True)
    assert len(dart.select(*inputs(), config)) == KEEP + 1


@pytest.mark.parametrize("name", sorted({*IN_THE_DECODER} - {*OF_VIDEOS}))
@torch.no_grad()
def test_prunes_a_model_and_leaves_no_trace(name: str) -> None:
    model = tiny_llava()
    ids, pixels = prompt(TEXT_BEFORE, TEXT_AFTER)
    before = model(input_ids=ids, pixel_values=pixels).logits
    config = dart.DartConfig(keep=KEEP, layer=2, strategy=name)
    with dart.prune(model, config) as handle:
        pruned = model(input_ids=ids, pixel_values=pixels).logits
        tokens = model.generate(input_ids=ids, pixel_values=pixels, do_sample=False, max_new_tokens=3)
    kept = dart.strategies.get(name).count(config, PATCHES, KEEP, TEXT_AFTER)
    assert (handle.last.visual_before, handle.last.visual_after) == ([PATCHES], [kept])
    assert pruned.shape[1] == TEXT_BEFORE + kept + TEXT_AFTER and tokens.shape[1] == ids.shape[1] + 3
    assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, before)


def test_commands_refuse_a_strategy_that_changes_images():
    assert dart.strategies.in_model("uniform") is dart.strategies.get("uniform")
    with pytest.raises(ValueError, match="'downsample' changes images before the processor.*handle.prepare"):
        dart.strategies.in_model("downsample")
