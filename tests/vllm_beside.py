"""A checkpoint in vLLM and in transformers, asked the same: what tests/test_vllm_*.py share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

# In this process, so that a test sees the model; one core; what is asked for of an engine at its start is little.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm.entrypoints", reason="vLLM has an environment of its own: make test-vllm")

from dart_vllm import register, seam, settings
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm.sampling_params import StructuredOutputsParams

import dart
from vllm import LLM, SamplingParams

__all__ = [
    "MODELS",
    "QWEN",
    "QWEN_IMAGE",
    "BaseMultiModalProcessor",
    "Served",
    "StructuredOutputsParams",
    "picture",
    "register",
    "same",
    "seam",
]

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "playground" / "models"
IMAGES = ROOT / "playground" / "data" / "mini" / "textvqa" / "train_images"
CHUNK = 64  # tokens of a step: every image is cut several times
BLOCK = 32  # tokens of an entry of the prefix cache
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 4,
    "max_num_batched_tokens": CHUNK,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "block_size": BLOCK,
    "seed": 0,
    "disable_log_stats": False,
    "limit_mm_per_prompt": {"image": 2},
}
CLOSE = 1e-4
ANSWER = 4
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": ANSWER, "logprobs": 5, "ignore_eos": True}
Expected = tuple[list[int], torch.Tensor, int]  # tokens, log-probabilities [ANSWER, V], tokens of the pruned prompt


def picture(number: int, size: tuple[int, int] | None = None) -> Image.Image:
    image = Image.open(IMAGES / f"scene_{number:04d}.jpg").convert("RGB")
    return image if size is None else image.resize(size)


class Served:
    """A checkpoint in vLLM and in transformers, asked the same."""

    def __init__(self, path: Path, prompt: str, placeholder: str, **more: Any):
        self.prompt, self.placeholder = prompt, placeholder
        self.engine = LLM(str(path), **(ENGINE | more))
        self.processor = AutoProcessor.from_pretrained(path)
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()

    def text(self, images: list[Image.Image], question: str) -> str:
        return self.prompt.format(self.placeholder * len(images), question)

    def request(self, images: list[Image.Image], question: str, asked: Any = None) -> dict[str, Any]:
        more = {} if asked is None else {"mm_processor_kwargs": {"dart": asked}}
        return {"prompt": self.text(images, question), "multi_modal_data": {"image": images}, **more}

    def ask(self, requests: list[dict[str, Any]], **more: Any) -> list[Any]:
        sampling = SamplingParams(**(SAMPLING | more))
        return self.engine.generate(requests, sampling, use_tqdm=False)

    def expected(self, images: list[Image.Image], question: str, asked: Any = None) -> Expected:
        """What transformers answers."""
        inputs = self.processor(text=[self.text(images, question)], images=images, return_tensors="pt")
        return self.answered(inputs, asked)

    def answered(self, inputs: Any, asked: Any) -> Expected:
        config = settings.config_of(asked)
        length = inputs["input_ids"].shape[1]
        with torch.no_grad(), self.pruned(config) as handle:
            out = self.model.generate(
                **inputs, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, eos_token_id=None,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            if handle is not None and handle.last is not None:
                length -= sum(handle.last.visual_before) - sum(handle.last.visual_after)
        return out.sequences[0, -ANSWER:].tolist(), torch.cat(out.logits).log_softmax(-1), length

    def expected_in_a_row(self, images: list[Image.Image], question: str, asked: Any) -> Expected:
        """The same of what is kept without its places: embeddings from which rows were taken."""
        inputs = self.processor(text=[self.text(images, question)], images=images, return_tensors="pt")
        seen: list[torch.Tensor] = []
        decoder = self.model.model.language_model
        hook = decoder.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        with torch.no_grad():
            self.model(**inputs)
            hook.remove()
            visual = (inputs["input_ids"][0] == self.model.config.image_token_id).nonzero().flatten()
            rows = settings.chosen(seen[0][0, visual], settings.config_of(asked))
            stays = torch.ones(seen[0].shape[1], dtype=torch.bool).index_fill(0, visual, False)
            stays[visual[rows]] = True
            out = self.model.generate(
                inputs_embeds=seen[0][:, stays], attention_mask=torch.ones(1, int(stays.sum()), dtype=torch.long),
                max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, eos_token_id=None, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        return out.sequences[0, -ANSWER:].tolist(), torch.cat(out.logits).log_softmax(-1), int(stays.sum())

    @contextmanager
    def pruned(self, config: Any) -> Iterator[Any]:
        if config is None:
            yield None
        else:
            with dart.prune(self.model, config) as handle:
                yield handle

    def close(self) -> None:  # vLLM has one engine in a process
        del self.engine
        cleanup_dist_env_and_memory()


def same(answer: Any, expected: Expected) -> None:
    tokens, scores, length = expected
    assert len(answer.prompt_token_ids) == length
    assert list(answer.outputs[0].token_ids) == tokens
    for row, given in zip(scores, answer.outputs[0].logprobs, strict=True):
        for token, entry in given.items():
            assert abs(float(row[token]) - entry.logprob) < CLOSE


QWEN = "<|im_start|>user\n{}{}<|im_end|>\n<|im_start|>assistant\n"
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
