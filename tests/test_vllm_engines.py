"""Engines of vLLM with settings of their own, one at a time. Run by `make test-vllm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from vllm_beside import ANSWER, MODELS, QWEN, QWEN_IMAGE, SAMPLING, Served, picture, same

from scripts.convert_llava_to_hf import main as convert
from vllm import SamplingParams

QUESTION = "What number is on the blue sign?"

ROUGHLY = 0.25  # two units in the last place of a bfloat16 logit above 16; processors with units for it sum otherwise
RANK, TARGETS = 4, ("q_proj", "v_proj")


def adapter(model: torch.nn.Module, folder: Path) -> None:
    """A random LoRA of the attention, written for vLLM and added to the weights of `model`."""
    weights, made = {}, torch.Generator().manual_seed(3)
    for name, module in model.named_modules():
        if "language_model" in name and name.endswith(TARGETS):
            down = torch.randn(RANK, module.in_features, generator=made)
            up = torch.randn(module.out_features, RANK, generator=made) / module.in_features
            module.weight.data += up @ down
            weights |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_a_request_with_an_adapter(tmp_path: Path) -> None:
    lora = pytest.importorskip("vllm.lora.request")  # without vLLM, `vllm` is this project's folder
    served = Served(MODELS / "qwen2_5-vl-tiny", QWEN, QWEN_IMAGE, enable_lora=True, max_lora_rank=8)
    try:
        images, asked = [picture(20)], {"keep": 0.3}
        request = served.request(images, QUESTION, asked)
        (before,) = served.ask([request])
        same(before, served.expected(images, QUESTION, asked))
        adapter(served.model, tmp_path)
        (answer,) = served.engine.generate(
            [request],
            SamplingParams(**SAMPLING),
            use_tqdm=False,
            lora_request=lora.LoRARequest("one", 1, str(tmp_path)),
        )
        assert answer.outputs[0].logprobs != before.outputs[0].logprobs
        same(answer, served.expected(images, QUESTION, asked))
    finally:
        served.close()


def test_bfloat16() -> None:
    """What is kept by its place is the same; log-probabilities are as far apart as the number format makes them."""
    served = Served(MODELS / "qwen2_5-vl-tiny", QWEN, QWEN_IMAGE, dtype="bfloat16")
    served.model.to(torch.bfloat16)
    try:
        images = [picture(21, (280, 560))]
        for asked in ({"keep": 40, "strategy": "uniform"}, {"keep": 0.3, "strategy": "random"}, {"keep": 0.4}):
            (answer,) = served.ask([served.request(images, QUESTION, asked)])
            _, scores, length = served.expected(images, QUESTION, asked)
            assert len(answer.prompt_token_ids) == length
            for token, entry in answer.outputs[0].logprobs[0].items():
                assert abs(float(scores[0, token]) - entry.logprob) < ROUGHLY
    finally:
        served.close()


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
