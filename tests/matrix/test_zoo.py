"""Every tiny model of the zoo runs, sees its image, and generates with a cache what it generates without."""

from __future__ import annotations

import pytest
import torch
import zoo

CHANGE = 1e-3  # of the last position's logits, at least, by other pixels


@pytest.fixture(scope="module", params=zoo.names())
def case(request):
    return zoo.make(request.param)


def other_pixels(inputs):
    generator = torch.Generator().manual_seed(99)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in inputs.items()
    }


@torch.no_grad()
def test_logits_are_finite_and_depend_on_the_image(case):
    inputs = case.inputs(images=2)
    logits = case.model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, zoo.VOCABULARY)
    assert logits.isfinite().all()
    assert (logits[:, -1] - case.model(**other_pixels(inputs)).logits[:, -1]).abs().max() > CHANGE


@torch.no_grad()
def test_generates_the_same_with_and_without_cache(case):
    if case.known:
        pytest.xfail(case.known)
    with_cache, without = (
        case.model.generate(**case.inputs(), max_new_tokens=3, use_cache=use) for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()
