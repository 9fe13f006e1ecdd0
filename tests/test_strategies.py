"""Every registered strategy, by its name: adding a file in dart/strategies is enough to be tested here."""

from __future__ import annotations

import pytest
import torch
from conftest import PATCHES, prompt, tiny_llava
from test_methods import registered

import dart
from dart.strategies import Reduction, Strategy
from dev import methods

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


# What the engine must catch of a strategy that reduces all samples at once: two images of 36 tokens in a row of 85, 9
# of each stay. More of them in tests/test_methods.py.


class AtOnce(Strategy):
    """Keeps the first tokens of every group."""

    def rows(self, batch):
        rows = []
        for groups, always in zip(batch.groups, batch.always, strict=True):
            stays = torch.from_numpy(always).clone()
            for group in groups:
                stays[torch.from_numpy(group.visual[: group.keep])] = True
            rows.append(stays.nonzero().flatten())
        widest = max(batch.widths)
        return torch.stack([torch.nn.functional.pad(row, (widest - len(row), 0), value=-1) for row in rows])

    def reduce_batch(self, batch, config):
        return self.rows(batch)


def changed(place: int, position: int):
    """The rows with another position at one place of the first sample, in order again."""

    def reduce_batch(self, batch, config):
        rows = self.rows(batch)
        rows[0, place] = position
        return rows.sort(1).values

    return reduce_batch


BROKEN_ROWS = {
    "dropped text": (changed(0, TEXT_BEFORE + 20), "dropped text"),
    "one more of an image": (changed(TEXT_BEFORE + 2 * KEEP, TEXT_BEFORE + 20), "must keep 12 visual tokens"),
    "twice the same": (changed(1, 0), "different positions"),
    "a hole": (changed(1, -1), "different positions"),
    "unsorted": (lambda self, batch, config: self.rows(batch).flip(1), "different positions, ascending"),
    "a row too short": (lambda self, batch, config: self.rows(batch)[:, 1:], r"LongTensor \[1, 33\]"),
    "no positions": (lambda self, batch, config: self.rows(batch).float(), r"LongTensor \[1, 33\]"),
}


@torch.no_grad()
def prune_two_images(kind: type, keep: int = 2 * KEEP) -> torch.Tensor:
    ids, pixels = prompt(TEXT_BEFORE, TEXT_AFTER, images=2)
    model = tiny_llava()
    with registered("at-once", kind), dart.prune(model, dart.DartConfig(keep=keep, strategy="at-once")):
        return model(input_ids=ids, pixel_values=pixels).logits


@pytest.mark.parametrize("rule", BROKEN_ROWS)
def test_all_samples_at_once_keep_the_contract_or_are_named(rule: str) -> None:
    reduce_batch, message = BROKEN_ROWS[rule]
    with pytest.raises((ValueError, TypeError), match=f"'at-once'.*{message}"):
        prune_two_images(type("Broken", (AtOnce,), {"reduce_batch": reduce_batch}))


def test_all_samples_at_once_without_a_mistake_run() -> None:
    one_by_one = {
        "reduce_batch": Strategy.reduce_batch,
        "reduce": lambda self, tokens: Reduction(tokens.visual[: tokens.keep]),
    }
    assert torch.equal(prune_two_images(AtOnce), prune_two_images(type("OneByOne", (AtOnce,), one_by_one)))


def test_signals_that_do_not_exist_are_refused_before_anything_runs() -> None:
    kind = type("Odd", (AtOnce,), {"needs": frozenset({"raw", "atention"})})
    with pytest.raises(ValueError, match="'at-once' needs atention, which is no signal; known: raw, hidden"):
        prune_two_images(kind)


# The page of methods.


def test_the_page_of_methods_is_up_to_date() -> None:
    assert methods.DOCUMENT.read_text(encoding="utf-8") == methods.document(), "run python -m dev.methods"


@pytest.mark.parametrize("kind", dart.config.BUDGET_KINDS)
@torch.no_grad()
def test_the_pages_means_are_those_of_a_forward(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tiny model: 4 layers, 25 of 36 tokens, 5 tokens of text after the image."""
    for name, value in {"LAYERS": 4, "TOKENS": PATCHES, "BUDGET": 25, "TEXT": TEXT_AFTER}.items():
        monkeypatch.setattr(methods, name, value)
    model, (ids, pixels) = tiny_llava(), prompt(TEXT_BEFORE, TEXT_AFTER)
    for name in sorted({*IN_THE_DECODER} - {*OF_VIDEOS}):
        settings = methods.config_of(name, kind)
        try:
            handle = dart.prune(model, settings)
        except ValueError:
            assert methods.mean(name, kind) == "refused"
            continue
        with handle:
            model(input_ids=ids, pixel_values=pixels)
        assert methods.per_layer(settings, methods.stages_of(settings)) == handle.last.visual_per_layer[0], name
        assert methods.mean(name, kind) == f"{handle.last.mean_visual_tokens[0]:.4g}"


def test_a_docstring_without_the_convention_is_named() -> None:
    with pytest.raises(ValueError, match="test_strategies must begin with 'Name: what it keeps"):
        methods.first_line(AtOnce())
