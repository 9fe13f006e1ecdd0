"""Qwen2-VL and Qwen2.5-VL with several pictures and videos, in batches and turns, against a written-out decoder."""

from __future__ import annotations

import pytest
import torch
from qwen_golden import FAMILIES, IMAGE, batch, cache_lengths, loaded, prompt
from qwen_reference import STEPS, answer, embeds_of, positions_of, reference, visual
from transformers import DynamicCache, StaticCache

import dart

KEEP = dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2)
WANTED = {"atol": 1e-4, "rtol": 0}
PICTURE, TALL, CLIP = ("image", 1, 12, 8), ("image", 1, 16, 6), ("video", 3, 8, 8)  # 24, 24 and 48 tokens
ROWS = {
    "picture": prompt(6, PICTURE, 9, seed=1),
    "two pictures": prompt(3, PICTURE, 4, TALL, 8, seed=2),
    "adjacent pictures": prompt(3, PICTURE, TALL, 5, seed=3),
    "video": prompt(5, CLIP, 7, seed=4),
    "picture and video": prompt(4, TALL, 2, CLIP, 6, seed=5),
    "text": prompt(21, seed=6),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    return loaded(request.param)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in ROWS if name != "text"])
def test_prefill_and_decoding_follow_the_written_out_decoder(family, attention, name):
    model, row = loaded(family, attention), ROWS[name]
    with dart.prune(model, KEEP) as handle:
        tokens, logits, cache = answer(model, row)
        report = handle.last
    assert report.visual_before == [int(visual(row["input_ids"]).sum())]
    assert report.visual_after[0] < 0.6 * report.visual_before[0]
    target = reference(model, row, report.kept[0], tokens[0, :-1])[-STEPS:]
    torch.testing.assert_close(logits[0], target, **WANTED)
    full, short = report.tokens_before + STEPS - 1, report.tokens_after + STEPS - 1
    assert cache_lengths(cache) == [full, full, short, short]
    assert (answer(model, row)[1] - logits).abs().max() > 1e-2


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_other_layers(model, layer):
    row = ROWS["two pictures"]
    with dart.prune(model, dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, layer=layer)) as handle:
        tokens, logits, _ = answer(model, row)
    target = reference(model, row, handle.last.kept[0], tokens[0, :-1], layer)[-STEPS:]
    torch.testing.assert_close(logits[0], target, **WANTED)


@pytest.mark.parametrize("name", ["two pictures", "adjacent pictures", "picture and video"])
def test_a_quota_for_each_span(model, name):
    row = ROWS[name]
    with torch.no_grad(), dart.prune(model, KEEP) as handle:
        model(**row)
    spans = handle.family.visual_span_ids(model, row)[0]
    for span in (1, 2):
        held = int((spans == span).sum())
        assert int((spans[handle.last.kept[0]] == span).sum()) == KEEP.num_kept(held) < held
    assert int(spans.max()) == 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_left_padded_batch_equals_each_row_alone(family, attention, layer):
    model = loaded(family, attention)
    with dart.prune(model, dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, layer=layer)) as handle:
        alone = [answer(model, row) for row in ROWS.values()]
        tokens, logits, _ = answer(model, batch(*ROWS.values()))
    assert handle.last.visual_after[-1] == 0 and len(set(handle.last.visual_after)) > 3
    for number, (single_tokens, single_logits, _) in enumerate(alone):
        torch.testing.assert_close(logits[number], single_logits[0], **WANTED)
        assert tokens[number].tolist() == single_tokens[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_and_sdpa_agree(family):
    both = []
    for attention in ("eager", "sdpa"):
        with dart.prune(loaded(family, attention), KEEP) as handle:
            both.append((answer(loaded(family, attention), batch(*ROWS.values())), handle.last.kept))
    torch.testing.assert_close(both[0][0][1], both[1][0][1], **WANTED)
    assert [k.tolist() for k in both[0][1]] == [k.tolist() for k in both[1][1]]


def test_text_alone_is_untouched(model):
    row = ROWS["text"]
    plain = answer(model, row)[1]
    with dart.prune(model, KEEP) as handle:
        assert torch.equal(answer(model, row)[1], plain)
    assert handle.last is None


def test_without_a_cache(model):
    row = ROWS["picture and video"]
    with dart.prune(model, KEEP):
        torch.testing.assert_close(answer(model, row, use_cache=False)[1], answer(model, row)[1], **WANTED)


def test_beams_of_a_batch_equal_one_by_one(model):
    rows = [ROWS["two pictures"], ROWS["video"], ROWS["text"]]
    with dart.prune(model, KEEP):
        alone = [answer(model, row, num_beams=3)[0][0].tolist() for row in rows]
        assert answer(model, batch(*rows), num_beams=3)[0].tolist() == alone


def test_static_cache(model):
    row = ROWS["two pictures"]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=120)
    with dart.prune(model, KEEP):
        static = answer(model, row, past_key_values=cache, disable_compile=True)[1]
        torch.testing.assert_close(static, answer(model, row)[1], **WANTED)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_later_turn_of_text_on_the_same_cache(model, layer):
    """The second turn of `generate` equals the loop over what the first turn left, its answer and the new text."""
    row, more = ROWS["picture and video"], prompt(7, seed=9)["input_ids"]
    cache = DynamicCache(config=model.config.get_text_config())
    with dart.prune(model, dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, layer=layer)) as handle:
        first = answer(model, row, past_key_values=cache)[0]
        kept = handle.last.kept[0]
        talk = torch.cat([row["input_ids"], first, more], 1)
        second = {"input_ids": talk, "attention_mask": torch.ones_like(talk)}
        tokens, logits, _ = answer(model, second, past_key_values=cache)
    assert handle.last.visual_before == [24 + 48]
    spoken = torch.cat([first[0], more[0], tokens[0, :-1]])
    torch.testing.assert_close(logits[0], reference(model, row, kept, spoken, layer)[-STEPS:], **WANTED)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("words", [1, 60])
@torch.no_grad()
def test_forwards_by_hand_without_positions(model, layer, words):
    """The model counts on from its cache, whose first layer is short at layer 0."""
    row, more = ROWS["picture and video"], prompt(words, seed=9)["input_ids"]
    with dart.prune(model, dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, layer=layer)) as handle:
        cache = model(**row, use_cache=True).past_key_values
        logits = [model(input_ids=part, past_key_values=cache).logits[0] for part in more.split((words + 1) // 2, 1)]
        kept = handle.last.kept[0]
    torch.testing.assert_close(torch.cat(logits), reference(model, row, kept, more[0], layer)[-words:], **WANTED)


@torch.no_grad()
def test_a_second_picture_in_a_later_turn(model):
    """Selected anew among its own tokens; what the first picture left stays."""
    row, more = ROWS["picture"], prompt(3, TALL, 5, seed=10)
    start = row["input_ids"].shape[1]
    pixels = torch.cat([row["pixel_values"], more["pixel_values"]])
    grids = torch.cat([row["image_grid_thw"], more["image_grid_thw"]])
    names = ("input_ids", "mm_token_type_ids", "attention_mask")
    whole = {n: torch.cat([row[n], more[n]], 1) for n in names} | {"pixel_values": pixels, "image_grid_thw": grids}
    positions = positions_of(model, whole)
    cache = DynamicCache(config=model.config.get_text_config())
    with dart.prune(model, KEEP) as handle:
        model(**row, past_key_values=cache)
        kept = handle.last.kept[0]
        new = {k: v for k, v in more.items() if k in ("input_ids", "pixel_values", "image_grid_thw")}
        logits = model(**new, position_ids=positions[:, None, start:], past_key_values=cache).logits[0]
        kept = torch.cat([kept, handle.last.kept[0] + start])
    assert handle.last.visual_before == [24]
    target = reference(model, whole, kept, torch.empty(0, dtype=torch.long))
    torch.testing.assert_close(logits, target[-len(logits) :], **WANTED)


def test_the_vision_tower_is_left_alone(model):
    row = ROWS["two pictures"]
    before = embeds_of(model, row)
    with dart.prune(model, KEEP):
        hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.model.visual.modules()]
        assert not any(hooks) and torch.equal(embeds_of(model, row), before)


@pytest.mark.parametrize(
    ("part", "config"),
    [
        (("image", 1, 2, 2), dart.DartConfig(keep=0.1)),  # one token: fewer than the pivots
        (("image", 1, 4, 2), dart.DartConfig(reduction_ratio=0.889)),  # two tokens: fewer than the image pivots
        (PICTURE, dart.DartConfig(keep=24)),
        (PICTURE, dart.DartConfig(keep=100000)),
    ],
)
def test_a_small_picture_or_a_large_budget_prunes_nothing(model, part, config):
    row = prompt(4, part, 6, seed=11)
    plain = answer(model, row)[1]
    with dart.prune(model, config) as handle:
        assert torch.equal(answer(model, row)[1], plain)
    assert handle.last.visual_after == handle.last.visual_before


def test_a_picture_at_the_end_and_no_text_after_it(model):
    row = prompt(4, PICTURE, seed=12)
    row |= {name: row[name][:, :-1] for name in ("input_ids", "mm_token_type_ids", "attention_mask")}
    assert row["input_ids"][0, -1] == IMAGE
    with torch.no_grad(), dart.prune(model, KEEP) as handle:
        model(**row)
    assert handle.last.visual_after == [KEEP.num_kept(24, text_pivots=0)]


@torch.no_grad()
def test_tokens_that_do_not_match_the_pixels_are_an_error_and_leave_the_model_usable(model):
    row = dict(ROWS["picture"])
    ids = row["input_ids"].clone()
    ids[0, 8] = 5
    with dart.prune(model, KEEP) as handle:
        with pytest.raises((ValueError, RuntimeError), match="tokens|features|size"):
            model(**row | {"input_ids": ids})
        model(**row)
        assert handle.last.visual_before == [24]
