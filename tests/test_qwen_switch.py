"""`Qwen2VL_DART` and `Qwen2_5VL_DART`: transformers' classes with `model.config.DART_config`."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from qwen_golden import CHECKPOINTS, CLASSES, FAMILIES, GOLDEN, NO_END, PAD, batch, loaded, prompt

import dart

PICTURE = ("image", 1, 12, 10)  # 30 tokens
ORIGINAL = {
    "Sparse": True,
    "K": 2,
    "image_token_start_index": 0,
    "image_token_length": 0,
    "max_num_trunction": 128,
    "reduction_ratio": 0.5,
    "pivot_image_token": 2,
    "pivot_text_token": 2,
}
ROW = prompt(5, PICTURE, 8, seed=1)


@pytest.fixture(params=FAMILIES)
def model(request):
    model = loaded(request.param)
    yield model
    model.config.DART_config = None
    assert model.dart_handle is None


@torch.no_grad()
def logits(model, row=ROW):
    return model(**row).logits


def test_the_published_class_and_ours_are_the_same_model(model, request):
    family = request.node.callspec.params["model"]
    stock_class = getattr(transformers, CLASSES[family].__name__)
    stock = stock_class.from_pretrained(GOLDEN / "ckpt" / CHECKPOINTS[family], dtype=torch.float32).eval()
    assert isinstance(model, stock_class) and torch.equal(logits(stock), logits(model))
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": NO_END, "pad_token_id": PAD}
    assert torch.equal(stock.generate(**ROW, **settings), model.generate(**ROW, **settings))
    with dart.prune(stock, dart.DartConfig.from_original(ORIGINAL, ratio_first=True)):
        pruned = logits(stock)
    model.config.DART_config = ORIGINAL
    assert torch.equal(pruned, logits(model))


def test_the_dictionary_is_read_at_every_call(model):
    plain = logits(model)
    model.config.DART_config = dict(ORIGINAL)
    half = logits(model)
    assert model.dart_handle.last.visual_after == [2 + 4 * (15 // 4)]
    model.config.DART_config["reduction_ratio"] = 0.8
    assert logits(model).shape[1] < half.shape[1] < plain.shape[1]
    for off in (None, ORIGINAL | {"Sparse": False}):
        model.config.DART_config = off
        assert torch.equal(logits(model), plain) and model.dart_handle is None


@pytest.mark.parametrize("stale", [{"image_token_start_index": 35, "image_token_length": 576}, {}])
def test_where_the_picture_is_comes_from_the_input(model, stale):
    model.config.DART_config = ORIGINAL | stale
    first = logits(model)
    logits(model, prompt(20, ("image", 1, 8, 8), 9, seed=2))
    text = prompt(60, seed=3)
    assert logits(model, text).shape[1] == 60
    assert torch.equal(logits(model), first)
    assert model.config.DART_config == ORIGINAL | stale


def test_a_batch_beside_the_switch(model):
    model.config.DART_config = ORIGINAL
    text = prompt(11, seed=4)
    both = logits(model, batch(ROW, text))
    torch.testing.assert_close(both[0, -1], logits(model)[0, -1], atol=1e-4, rtol=0)
    torch.testing.assert_close(both[1, -1], logits(model, text)[0, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"Sparse": "maybe"}, "Sparse must be True.*maybe"),
        ({"ratio": 0.5}, "unknown keys ratio; known: .*reduction_ratio"),
        ({"reduction_ratio": 1.5}, "between 0 and 1"),
        ({"K": -1}, "layer must be 0 or more"),
    ],
)
def test_a_wrong_dictionary_is_named(model, wrong, message):
    model.config.DART_config = ORIGINAL | wrong
    with pytest.raises(ValueError, match=message):
        logits(model)
    model.config.DART_config = "on"
    with pytest.raises(TypeError, match="dict or None, got str"):
        logits(model)


def test_labels_are_those_of_the_kept_tokens_from_the_first_call_on(model):
    model.config.DART_config = ORIGINAL
    labels = ROW["input_ids"]
    out = model(**ROW, labels=labels)
    kept = labels[0][model.dart_handle.last.rows[0]]
    wanted = torch.nn.functional.cross_entropy(out.logits[0, :-1], kept[1:])
    torch.testing.assert_close(out.loss, wanted)


def test_a_saved_checkpoint_is_the_published_layout_without_the_switch(model, tmp_path):
    model.config.DART_config = ORIGINAL
    pruned = logits(model)
    model.save_pretrained(tmp_path)
    assert model.config.DART_config is ORIGINAL
    assert "DART_config" not in json.loads((tmp_path / "config.json").read_text())
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert again.dart_handle is None
    again.config.DART_config = ORIGINAL
    assert torch.equal(logits(again), pruned)


def test_a_handle_of_the_caller_is_the_active_one(model):
    with dart.prune(model, dart.DartConfig(keep=12)) as handle:
        assert model.dart_handle is handle
    assert model.dart_handle is None
