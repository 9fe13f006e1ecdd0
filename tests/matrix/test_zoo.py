"""Every tiny model of the zoo runs, sees its image, and generates with a cache what it generates without."""

from __future__ import annotations

import pytest
import torch
import zoo

CHANGE = 1e-3  # of the last position's logits, at least, by other pixels
SAME = {"atol": 1e-3, "rtol": 0}


@pytest.fixture(scope="module", params=zoo.names())
def case(request):
    case = zoo.make(request.param)
    if case.skip:
        pytest.skip(case.skip)
    return case


def test_every_model_type_has_a_model_or_a_reason():
    assert set(zoo.names()) <= set(zoo.FAMILIES) | set(zoo.SKIPPED)
    assert not set(zoo.FAMILIES) & set(zoo.SKIPPED)


def other_pixels(inputs):
    generator = torch.Generator().manual_seed(99)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in inputs.items()
    }


def test_the_decoder_is_where_the_case_says(case):
    decoder = case.model.get_submodule(case.decoder)
    assert len(decoder.layers) >= zoo.LAYERS


def check_logits(case, inputs):
    logits = case.model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, zoo.VOCABULARY)
    assert logits.isfinite().all()
    assert (logits[:, -1] - case.model(**other_pixels(inputs)).logits[:, -1]).abs().max() > CHANGE
    return logits


@torch.no_grad()
def test_logits_are_finite_and_depend_on_the_images(case):
    check_logits(case, case.inputs(images=2))


@torch.no_grad()
def test_logits_are_finite_and_depend_on_the_video(case):
    if case.video is None:
        pytest.skip("no video in this family")
    check_logits(case, case.video_inputs())


@torch.no_grad()
def test_visual_tokens_see_later_ones_where_the_case_says_so(case):
    """The last visual token's embedding changes the first one's logits, or does not."""
    inputs = case.inputs()
    visual = torch.isin(inputs["input_ids"][0], torch.tensor(case.image_tokens)).nonzero().flatten()
    assert case.contiguous == (int(visual[-1] - visual[0]) == len(visual) - 1)

    def shift(decoder, args, kwargs):
        embeds = kwargs["inputs_embeds"].clone()
        embeds[0, visual[-1]] += 0.5
        return args, kwargs | {"inputs_embeds": embeds}

    if case.model_type == "chameleon":
        pytest.skip("its decoder embeds the image itself")
    before = case.model(**inputs).logits[0, visual[0]]
    with_shift = case.model.get_submodule(case.decoder).register_forward_pre_hook(shift, with_kwargs=True)
    after = case.model(**inputs).logits[0, visual[0]]
    with_shift.remove()
    assert case.bidirectional == ((after - before).abs().max() > SAME["atol"])


@torch.no_grad()
def test_a_padded_batch_equals_its_rows_alone(case):
    if not case.batches:
        pytest.skip("no padded batches in this family")
    rows = [case.inputs(text_before=3), case.inputs(images=2, text_before=5, seed=1)]
    logits = case.model(**zoo.batch(case, rows)).logits
    for number, row in enumerate(rows):
        alone = case.model(**row).logits[0]
        torch.testing.assert_close(logits[number, -len(alone) :], alone, **SAME)


@torch.no_grad()
def test_generates_the_same_with_and_without_cache(case):
    if case.known:
        pytest.xfail(case.known)
    inputs = case.inputs()
    cached, whole = (case.model.generate(**inputs, max_new_tokens=3, use_cache=use) for use in (True, False))
    assert cached.shape[1] == inputs["input_ids"].shape[1] + 3
    assert cached.tolist() == whole.tolist()
