"""The recorded LLaVA-1.5 runs of the research code, from the checkpoint on disk through our own preprocessing."""

from __future__ import annotations

import hashlib

import pytest
import torch
from llava_golden import DART, IMAGE_START, IMAGE_TOKENS, RECORD, cache_lengths, loaded, sample, tensors

TOLERANCE = 1e-4
FP16_TOLERANCE = 0.1  # logits reach 10; float16 sums are ordered differently by other versions of torch's kernels
NEW_TOKENS = 16
RUNS = RECORD["runs"]
WRONG_START = ("dart128-start40-sdpa", "dart128-start90-sdpa")
PARITY = [n for n, r in RUNS.items() if "prefill_exception" not in r and n not in WRONG_START]
DECODED = [n for n in PARITY if "tokens" in RUNS[n]]


@pytest.fixture(autouse=True)
def _dart_off_afterwards():
    yield
    for attention, dtype in (("sdpa", "float32"), ("eager", "float32"), ("sdpa", "float16")):
        loaded(attention, dtype)[1].config.DART_config = None


def _model(run: dict):
    model = loaded(run["attn"], run["dtype"])[1]
    model.config.DART_config = run["DART_config"]
    return model


def _inputs(run: dict) -> tuple[torch.Tensor, torch.Tensor]:
    ids, pixels = sample(run["sample"])
    return ids, pixels.to(getattr(torch, run["dtype"]))


def _tolerance(run: dict) -> float:
    return TOLERANCE if run["dtype"] == "float32" else FP16_TOLERANCE


def _kept(retained: list[int]) -> list[int]:
    return [p for p in retained if IMAGE_START <= p < IMAGE_START + IMAGE_TOKENS]


@pytest.mark.parametrize("name", RECORD["samples"])
def test_prompt_and_pixels_are_bit_identical(name):
    ids, pixels = sample(name)
    record = RECORD["samples"][name]
    assert ids[0].tolist() == record["input_ids"]
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() == record["pixel_values_sha256"]


def test_image_features_and_embeddings():
    model = loaded()[1]
    ids, pixels = sample("a")
    with torch.no_grad():
        merged = model.merge(ids, pixels)
    torch.testing.assert_close(merged.inputs_embeds[0], tensors()["sample.a.inputs_embeds"], atol=TOLERANCE, rtol=0)
    spans = merged.visual_span_ids[0]
    assert spans[IMAGE_START : IMAGE_START + IMAGE_TOKENS].eq(1).all() and int(spans.sum()) == IMAGE_TOKENS


@pytest.mark.parametrize("name", PARITY)
@torch.no_grad()
def test_prefill(name):
    run = RUNS[name]
    model, (ids, pixels) = _model(run), _inputs(run)
    out = model(ids, images=pixels, use_cache=True)
    expected = tensors()[f"{name}.prefill_last_logits"]
    torch.testing.assert_close(out.logits[:, -1].float(), expected, atol=_tolerance(run), rtol=0)
    if f"{name}.prefill_logits" in tensors():
        torch.testing.assert_close(out.logits[0], tensors()[f"{name}.prefill_logits"], atol=TOLERANCE, rtol=0)
    assert list(out.logits.shape) == run["prefill_logits_shape"]
    assert cache_lengths(out.past_key_values) == run["kv_lengths_after_prefill"]
    if "retained" in run:
        assert model.dart_handle.last.kept[0].tolist() == _kept(run["retained"])


@pytest.mark.parametrize("name", DECODED)
@torch.no_grad()
def test_greedy_decoding(name):
    run = RUNS[name]
    model, (ids, pixels) = _model(run), _inputs(run)
    assert model.dart_handle is not None or run["DART_config"] is None  # attaches: our hook below comes after DART's
    seen: list[list[int]] = []
    last_layer = model.model.layers[-1]
    hook = last_layer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["position_ids"][0].tolist()), with_kwargs=True
    )
    out = model.generate(
        ids,
        images=pixels,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    hook.remove()
    # The recorded list starts with the BOS that the original's generate returned.
    assert out.sequences[0].tolist() == run["tokens"][1:]
    steps = torch.cat(out.logits).float()
    torch.testing.assert_close(steps, tensors()[f"{name}.step_logits"], atol=_tolerance(run), rtol=0)
    assert cache_lengths(out.past_key_values) == run["kv_lengths_at_end"]
    assert [p for (p,) in seen[1:]] == run["decode_position_ids"]
    if "position_ids_after_pruning" in run:
        assert seen[0] == torch.tensor(run["position_ids_after_pruning"]).flatten().tolist()


@pytest.mark.parametrize("name", WRONG_START)
@torch.no_grad()
def test_a_stale_static_start_is_overruled_by_the_input(name):
    """The original prunes the wrong tokens or crashes; the input says where the picture is."""
    model, (ids, pixels) = _model(RUNS[name]), _inputs(RUNS[name])
    logits = model(ids, images=pixels).logits[:, -1]
    torch.testing.assert_close(logits, tensors()["dart128-sdpa.prefill_last_logits"], atol=TOLERANCE, rtol=0)
    assert model.dart_handle.last.kept[0].tolist() == _kept(RUNS["dart128-sdpa"]["retained"])


@torch.no_grad()
def test_layer_0_prunes_the_embeddings():
    """The original raises for K = 0."""
    model = loaded()[1]
    ids, pixels = sample("a")
    model.config.DART_config = {**DART, "K": 0}
    out = model(ids, images=pixels, use_cache=True)
    assert cache_lengths(out.past_key_values) == [220] * 4
    assert len(model.dart_handle.last.kept[0]) == 132


@torch.no_grad()
def test_off_is_bit_identical_to_never_attached():
    model = loaded()[1]
    ids, pixels = sample("a")
    before = model(ids, images=pixels).logits
    model.config.DART_config = DART
    pruned = model(ids, images=pixels).logits
    model.config.DART_config = None
    after = model(ids, images=pixels).logits
    assert torch.equal(before, after) and pruned.shape != before.shape
    assert model.dart_handle is None
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)
