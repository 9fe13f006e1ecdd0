"""The LLaVA model beyond the original: batches, turns, text alone, kernels, labels, saving, transformers' class."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from llava_golden import DART, RECORD, cache_lengths, loaded, sample, tensors
from transformers import DynamicCache, LlavaForConditionalGeneration

import dart
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaLlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from convert_llava_to_hf import convert_model  # noqa: E402 - the scripts folder is no package

TOLERANCE = 1e-4
IMAGE_ID = 406
TEXT_IDS = [1, 278, 346, 353, 259, 354, 288, 274, 262, 341]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture(params=["off", "dart"])
def model(request):
    model = loaded()[1]
    model.config.DART_config = DART if request.param == "dart" else None
    yield model
    model.config.DART_config = None


@pytest.fixture
def pruned():
    model = loaded()[1]
    model.config.DART_config = DART
    yield model
    model.config.DART_config = None


def padded_batch(side: str = "left") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (a, pixels_a), (b, pixels_b) = sample("a"), sample("b")
    gap = torch.zeros(1, a.shape[1] - b.shape[1], dtype=torch.long)
    pieces, masks = [gap, b], [gap, torch.ones_like(b)]
    if side == "right":
        pieces, masks = pieces[::-1], masks[::-1]
    mask = torch.cat([torch.ones_like(a), torch.cat(masks, 1)])
    return torch.cat([a, torch.cat(pieces, 1)]), mask, torch.cat([pixels_a, pixels_b])


@torch.no_grad()
def test_padded_batch_equals_single_prompts(model):
    ids, mask, pixels = padded_batch()
    out = model.generate(
        ids, images=pixels, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **GREEDY
    )
    for row, name in enumerate("ab"):
        single_ids, single_pixels = sample(name)
        single = model.generate(
            single_ids, images=single_pixels, output_logits=True, return_dict_in_generate=True, **GREEDY
        )
        assert out.sequences[row].tolist() == single.sequences[0].tolist()
        batch_logits = torch.stack([step[row] for step in out.logits])
        torch.testing.assert_close(batch_logits, torch.cat(single.logits), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_right_padded_forward_equals_single_prompts():
    model = loaded()[1]
    ids, mask, pixels = padded_batch("right")
    logits = model(ids, images=pixels, attention_mask=mask).logits
    length = RECORD["samples"]["b"]["sequence_length"]
    torch.testing.assert_close(
        logits[1, length - 1], tensors()["off-b-sdpa.prefill_last_logits"][0], atol=TOLERANCE, rtol=0
    )


@torch.no_grad()
def test_batch_with_and_without_a_picture(pruned):
    ids, pixels = sample("a")
    text = torch.tensor([[0] * (ids.shape[1] - len(TEXT_IDS)) + TEXT_IDS])
    mask = torch.cat([torch.ones_like(ids), (text > 0).long()])
    batch = pruned.generate(torch.cat([ids, text]), images=pixels, attention_mask=mask, **GREEDY)
    assert batch[0].tolist() == RECORD["runs"]["dart128-sdpa"]["tokens"][1:7]
    alone = pruned.generate(torch.tensor([TEXT_IDS]), **GREEDY)
    assert batch[1].tolist() == alone[0].tolist()


@torch.no_grad()
def test_text_alone_is_never_pruned(pruned):
    ids = torch.tensor([TEXT_IDS])
    with_dart = pruned(ids, use_cache=True)
    pruned.config.DART_config = None
    assert torch.equal(with_dart.logits, pruned(ids).logits)
    assert cache_lengths(with_dart.past_key_values) == [len(TEXT_IDS)] * 4


@torch.no_grad()
def test_eager_equals_sdpa_while_decoding():
    """The original's eager path cannot decode at all."""
    ids, pixels = sample("a")
    eager = loaded("eager")[1]
    eager.config.DART_config = DART
    out = eager.generate(ids, images=pixels, output_logits=True, return_dict_in_generate=True, **GREEDY)
    eager.config.DART_config = None
    expected = tensors()["dart128-sdpa.step_logits"][:6]
    torch.testing.assert_close(torch.cat(out.logits), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_beam_search(model):
    """Two beams keep the caches of both rows apart: each returned sequence's score is what a plain forward gives it."""
    ids, pixels = sample("a")
    out = model.generate(
        ids,
        images=pixels,
        num_beams=2,
        num_return_sequences=2,
        output_scores=True,
        return_dict_in_generate=True,
        **GREEDY,
    )
    for answer, score in zip(out.sequences, out.sequences_scores, strict=True):
        cache = DynamicCache(config=model.config)
        logits = [model(ids, images=pixels, past_key_values=cache, use_cache=True).logits[:, -1]]
        for token in answer[:-1]:
            logits.append(model(token.view(1, 1), past_key_values=cache, use_cache=True).logits[:, -1])
        steps = torch.cat(logits).log_softmax(-1)
        # min_new_tokens forbids the end token, whose probability is not handed to the others.
        total = steps.gather(1, answer[:, None]).sum() / len(answer)
        torch.testing.assert_close(total, score, atol=1e-3, rtol=0)


@torch.no_grad()
def test_second_turn_with_the_first_turns_cache(model):
    ids, pixels = sample("a")
    cache = DynamicCache(config=model.config)
    first = model.generate(ids, images=pixels, past_key_values=cache, **GREEDY)
    longer = torch.cat([ids, first, torch.tensor([TEXT_IDS[1:]])], dim=1)
    second = model.generate(
        longer, images=pixels, past_key_values=cache, output_logits=True, return_dict_in_generate=True, **GREEDY
    )
    # The same turns by hand: forward after forward on one cache.
    by_hand = DynamicCache(config=model.config)
    model(ids, images=pixels, past_key_values=by_hand, use_cache=True)
    model(first[:, :-1], past_key_values=by_hand, use_cache=True)
    rest = torch.cat([first[:, -1:], torch.tensor([TEXT_IDS[1:]])], dim=1)
    logits = model(rest, past_key_values=by_hand, use_cache=True).logits[:, -1]
    torch.testing.assert_close(second.logits[0], logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_without_a_cache():
    model = loaded()[1]
    ids, pixels = sample("a")
    assert (
        model.generate(ids, images=pixels, use_cache=False, **GREEDY)[0].tolist()
        == (RECORD["runs"]["off-sdpa"]["tokens"][1:7])
    )
    model.config.DART_config = DART
    logits = model(ids, images=pixels, use_cache=False).logits[:, -1]
    tokens = model.generate(ids, images=pixels, use_cache=False, **GREEDY)
    model.config.DART_config = None
    assert tokens[0].tolist() == RECORD["runs"]["dart128-sdpa"]["tokens"][1:7]
    assert tokens[0, :4].tolist() == RECORD["nocache_tokens"][1:]
    torch.testing.assert_close(logits, tensors()["dart128-sdpa.prefill_last_logits"], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_loss_counts_the_text_tokens_whether_pruned_or_not(pruned):
    """The original raises: its logits are shorter than the labels."""
    ids, pixels = sample("a")
    labels = torch.where(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX, ids)
    out = pruned(ids, images=pixels, labels=labels)
    after = ids[0, 36:]
    predicted = out.logits[0, -len(after) - 1 : -1]
    before = ids[0, 1:35]
    predicted = torch.cat([out.logits[0, :34], predicted])
    expected = torch.nn.functional.cross_entropy(predicted, torch.cat([before, after]))
    torch.testing.assert_close(out.loss, expected)


@torch.no_grad()
def test_the_callers_own_prune():
    model = loaded()[1]
    ids, pixels = sample("a")
    assert model.dart_handle is None
    with dart.prune(model, dart.DartConfig(keep=128, pivot_order="original")) as handle:
        assert model.dart_handle is handle
        logits = model(ids, images=pixels).logits[:, -1]
    assert model.dart_handle is None
    torch.testing.assert_close(logits, tensors()["dart128-sdpa.prefill_last_logits"], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_callers_own_prune_right_after_the_switch_was_turned_off(pruned):
    ids, pixels = sample("a")
    pruned(ids, images=pixels)
    pruned.config.DART_config = None
    with dart.prune(pruned, dart.DartConfig(keep=64)) as handle:
        pruned(ids, images=pixels)
    assert handle.last.visual_after == [4 + 8 * 8]
    assert pruned(ids, images=pixels).logits.shape[1] == RECORD["samples"]["a"]["sequence_length"]


@torch.no_grad()
def test_an_exception_inside_a_forward_leaves_the_next_one_as_it_was(pruned):
    ids, pixels = sample("a")
    before = pruned(ids, images=pixels).logits

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    for layer in (1, 3):  # before the pruning and after
        hook = pruned.model.layers[layer].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            pruned(ids, images=pixels)
        hook.remove()
        assert torch.equal(pruned(ids, images=pixels).logits, before)
        text = torch.tensor([TEXT_IDS])
        assert pruned(text).logits.shape[1] == len(TEXT_IDS)


@torch.no_grad()
def test_several_pictures_in_one_prompt(pruned):
    ids, pixels = sample("a")
    two = torch.cat([ids[:, :36], ids[:, 35:]], dim=1)
    pruned(two, images=torch.cat([pixels, pixels.flip(-1)]))
    report = pruned.dart_handle.last
    assert report.visual_before == [1152]
    assert len(report.kept[0]) == report.visual_after[0] < 1152
    first = int((report.kept[0] < 35 + 576).sum())
    assert abs(2 * first - report.visual_after[0]) <= 8  # half of the budget each


@pytest.mark.parametrize(
    ("images", "match"),
    [(None, "images is None"), (0, "1 image placeholder.*0 image"), (2, "1 image placeholder.*2 image")],
)
def test_pictures_must_match_placeholders(images, match):
    model = loaded()[1]
    ids, pixels = sample("a")
    given = None if images is None else pixels.repeat(images, 1, 1, 1)
    with pytest.raises(ValueError, match=match):
        model(ids, images=given)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"reduction_rate": 0.5}, "reduction_rate"), ({"K": -1}, "layer"), ({"strategy": "drat"}, "did you mean dart")],
)
def test_bad_dart_config(settings, match):
    model = loaded()[1]
    model.config.DART_config = settings
    try:
        with pytest.raises(ValueError, match=match):
            model(torch.tensor([TEXT_IDS]))
    finally:
        model.config.DART_config = None
    assert model.dart_handle is None


def test_dart_config_must_be_a_dict():
    model = loaded()[1]
    model.config.DART_config = 128
    with pytest.raises(TypeError, match="DART_config"):
        model(torch.tensor([TEXT_IDS]))
    model.config.DART_config = None


@torch.no_grad()
def test_save_and_load(tmp_path, pruned):
    pruned.save_pretrained(tmp_path)
    assert "DART_config" not in (tmp_path / "config.json").read_text()
    again = LlavaLlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert getattr(again.config, "DART_config", None) is None
    ids, pixels = sample("a")
    pruned.config.DART_config = None
    assert torch.equal(again(ids, images=pixels).logits, pruned(ids, images=pixels).logits)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    convert_model(loaded()[1], IMAGE_ID).save_pretrained(folder)
    return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("name", ["off-sdpa", "dart128-sdpa", "dart64-sdpa", "dart128-b-sdpa", "dart128-K1-sdpa"])
@torch.no_grad()
def test_the_same_weights_in_transformers_class(converted, name):
    run = RECORD["runs"][name]
    ids, pixels = sample(run["sample"])
    place = int((ids[0] == IMAGE_TOKEN_INDEX).nonzero())
    ids = torch.cat([ids[:, :place], torch.full((1, 576), IMAGE_ID), ids[:, place + 1 :]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    handle = (
        None if run["DART_config"] is None else dart.prune(converted, dart.DartConfig.from_original(run["DART_config"]))
    )
    try:
        out = converted(**inputs, use_cache=True)
        expected = tensors()[f"{name}.prefill_last_logits"]
        torch.testing.assert_close(out.logits[:, -1, : expected.shape[1]], expected, atol=TOLERANCE, rtol=0)
        assert cache_lengths(out.past_key_values) == run["kv_lengths_after_prefill"]
        tokens = converted.generate(**inputs, do_sample=False, max_new_tokens=16, min_new_tokens=16)
        assert tokens[0, ids.shape[1] :].tolist() == run["tokens"][1:]
    finally:
        if handle is not None:
            handle.remove()
