"""The plugin in vLLM itself, beside transformers with `dart.prune` at layer 0. Run by `make test-vllm`."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata
from vllm_beside import (
    MODELS,
    QWEN,
    QWEN_IMAGE,
    BaseMultiModalProcessor,
    Served,
    StructuredOutputsParams,
    picture,
    register,
    same,
    seam,
)


@pytest.fixture(scope="module")
def qwen() -> Iterator[Served]:
    served = Served(MODELS / "qwen2_5-vl-tiny", QWEN, QWEN_IMAGE)
    yield served
    served.close()


QUESTION, OTHER_QUESTION = "What number is on the blue sign?", "What color is the sign?"
BUDGETS = [
    None,
    {"keep": 0.222},
    {"keep": 64, "image_pivots": 4},
    {"keep": 64, "strategy": "divprune"},
    {"keep": 0.3, "strategy": "spread"},
    {"keep": 30, "strategy": "random", "seed": 7},
    {"keep": 0.5, "strategy": "uniform"},
    {"keep": 20, "strategy": "cenprune"},
]


@pytest.mark.parametrize("asked", BUDGETS, ids=str)
def test_an_answer_is_that_of_transformers(qwen: Served, asked: Any) -> None:
    images = [picture(1)]
    (answer,) = qwen.ask([qwen.request(images, QUESTION, asked)])
    same(answer, qwen.expected(images, QUESTION, asked))


def test_a_batch_of_budgets_and_sizes(qwen: Served) -> None:
    cases = [
        ([picture(2, (280, 560))], {"keep": 0.25}),  # upright: the places of height and width differ
        ([picture(3)], None),
        ([picture(4, (560, 280))], {"keep": 40, "strategy": "spread"}),
        ([picture(5), picture(6, (336, 420))], {"keep": 0.3, "strategy": "divprune"}),
    ]
    answers = qwen.ask([qwen.request(images, QUESTION, asked) for images, asked in cases])
    for answer, (images, asked) in zip(answers, cases, strict=True):
        same(answer, qwen.expected(images, QUESTION, asked))


@pytest.mark.parametrize("asked", [None, {"keep": 0.3, "strategy": "spread"}], ids=str)
def test_a_video(qwen: Served, asked: Any) -> None:
    frames = np.stack([np.asarray(picture(number, (280, 308))) for number in range(1, 5)])
    known = {
        "fps": 2.0,
        "total_num_frames": 4,
        "duration": 2.0,
        "frames_indices": [0, 1, 2, 3],
        "video_backend": "none",
    }
    text = QWEN.format("<|vision_start|><|video_pad|><|vision_end|>", QUESTION)
    inputs = qwen.processor(
        text=[text], videos=[frames], video_metadata=[VideoMetadata(**known)], do_sample_frames=False,
        return_tensors="pt",
    )  # fmt: skip
    request = {"prompt": text, "multi_modal_data": {"video": [(frames, known | {"do_sample_frames": False})]}}
    more = {} if asked is None else {"mm_processor_kwargs": {"dart": asked}}
    (answer,) = qwen.ask([request | more])
    same(answer, qwen.answered(inputs, asked))


def test_what_is_cached_serves_its_own_image_and_budget_alone(qwen: Served) -> None:
    asked = {"keep": 0.4, "strategy": "spread"}
    for images, question, budget, hit in [
        ([picture(7)], QUESTION, asked, False),
        ([picture(7)], QUESTION, asked, True),
        ([picture(7)], OTHER_QUESTION, asked, True),
        ([picture(8)], QUESTION, asked, False),  # the same size
        ([picture(7)], QUESTION, {**asked, "keep": 0.41}, False),
        ([picture(7)], QUESTION, {**asked, "strategy": "uniform"}, False),  # as many tokens, others
        ([picture(7)], QUESTION, None, False),
    ]:
        (answer,) = qwen.ask([qwen.request(images, question, budget)])
        # The words before an image are always the same: a hit is more than those.
        assert (answer.num_cached_tokens > 0) == hit
        same(answer, qwen.expected(images, question, budget))


def test_a_name_that_a_client_gives_an_image_is_one_of_every_budget(qwen: Served) -> None:
    images = [picture(15)]
    for asked in [{"keep": 0.4}, {"keep": 0.4, "strategy": "uniform"}, None] * 2:
        request = qwen.request(images, QUESTION, asked) | {"multi_modal_uuids": {"image": ["mine"]}}
        (answer,) = qwen.ask([request])
        same(answer, qwen.expected(images, QUESTION, asked))


def test_several_answers_and_a_given_form(qwen: Served) -> None:
    request = qwen.request([picture(1)], QUESTION, {"keep": 0.25})
    (answer,) = qwen.ask([request], n=3, temperature=1.0)
    assert len(answer.outputs) == 3
    form = StructuredOutputsParams(choice=["red", "blue"])
    (answer,) = qwen.ask([request], structured_outputs=form, ignore_eos=False, max_tokens=8)
    assert answer.outputs[0].text in ("red", "blue")


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"keep": 2.0}, "between 0 and 1"), ({"keep": 9, "strategy": "fastv"}, "strategy must be"), ("all", "an object")],
)
def test_a_bad_budget_is_refused_and_the_engine_goes_on(qwen: Served, asked: Any, words: str) -> None:
    images = [picture(1)]
    with pytest.raises(ValueError, match=words):
        qwen.ask([qwen.request(images, QUESTION, asked)])
    (answer,) = qwen.ask([qwen.request(images, QUESTION, {"keep": 0.2})])
    same(answer, qwen.expected(images, QUESTION, {"keep": 0.2}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_places_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    most = seam.BASE**seam.DIGITS - 1
    places = torch.tensor([[0, 127, 128], [257, 4095, most]])
    assert torch.equal(seam.from_digits(seam.digits(places, torch.zeros(1, dtype=dtype))), places.T)
    with pytest.raises(ValueError, match="is the most"):
        seam.digits(places + 1, torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize("version", ["0.30.2", "0.33.0", "1.0"])
def test_another_release_of_vllm_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    with pytest.raises(RuntimeError, match=f"is for vLLM 0.31 to 0.32, this is {version}"):
        register()


def test_a_family_that_is_not_pruned_is_refused() -> None:
    register()
    config = SimpleNamespace(mm_processor_kwargs=None)
    other = SimpleNamespace(info=SimpleNamespace(ctx=SimpleNamespace(get_mm_config=lambda: config)))
    with pytest.raises(ValueError, match="no family that the plugin prunes"):
        BaseMultiModalProcessor.apply(other, SimpleNamespace(hf_processor_mm_kwargs={"dart": {"keep": 0.5}}), None)
