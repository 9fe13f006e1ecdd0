"""Engines of vLLM with settings of their own, one at a time. Run by `make test-vllm`."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_beside import ANSWER, MODELS, QWEN, QWEN_IMAGE, Served, picture, same

from scripts.convert_llava_to_hf import main as convert

QUESTION = "What number is on the blue sign?"


def test_a_request_can_take_the_servers_budget_back() -> None:
    served = Served(MODELS / "qwen2-vl-tiny", QWEN, QWEN_IMAGE, mm_processor_kwargs={"dart": {"keep": 0.3, "seed": 1}})
    try:
        images = [picture(9)]
        default = {"keep": 0.3, "seed": 1}
        for asked, means, hit in [
            (None, default, False),
            (default, default, True),  # the server's default is part of a cached image's name
            (False, None, False),
            ({"keep": 9, "strategy": "random"}, {"keep": 9, "strategy": "random"}, False),
        ]:
            (answer,) = served.ask([served.request(images, QUESTION, asked)])
            assert (answer.num_cached_tokens > 0) == hit
            same(answer, served.expected(images, QUESTION, means))
    finally:
        served.close()


def test_requests_that_lose_their_place_and_start_again() -> None:
    """Memory for about two requests, four are asked at once: vLLM takes some off and computes them anew."""
    served = Served(MODELS / "qwen2_5-vl-tiny", QWEN, QWEN_IMAGE, num_gpu_blocks_override=10, max_model_len=256)
    try:
        cases = [([picture(number)], {"keep": 60, "strategy": "spread"}) for number in range(10, 14)]
        answers = served.ask([served.request(images, QUESTION, asked) for images, asked in cases], max_tokens=40)
        metrics = {metric.name: metric for metric in served.engine.get_metrics()}
        assert metrics["vllm:num_preemptions"].value > 0
        for answer, (images, asked) in zip(answers, cases, strict=True):
            tokens, _, _ = served.expected(images, QUESTION, asked)
            assert list(answer.outputs[0].token_ids)[:ANSWER] == tokens
    finally:
        served.close()


@pytest.mark.parametrize("name", ["llava-tiny", "llava-next-tiny"])
def test_families_whose_tokens_stand_in_a_row(name: str, tmp_path: Path) -> None:
    """LLaVA's tokens have no places of their own: what is kept stands as any shorter embedding would."""
    convert(["--model-path", str(MODELS / name), "--output", str(tmp_path), "--torch-dtype", "float32"])
    served = Served(tmp_path, "USER: {}{} ASSISTANT:", "<image>\n")
    try:
        cases = [({"keep": 0.222}, 1), (None, 2), ({"keep": 64, "strategy": "divprune"}, 3)]
        answers = served.ask([served.request([picture(number)], QUESTION, asked) for asked, number in cases])
        for answer, (asked, number) in zip(answers, cases, strict=True):
            same(answer, served.expected_in_a_row([picture(number)], QUESTION, asked))
    finally:
        served.close()
