"""Shared fixtures: recorded reference data and tiny models made from configs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton (transformers' models do): its functions are interpreted or compiled from then on.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

GOLDEN = Path(__file__).parent / "golden"
MINI = Path(__file__).parents[1] / "playground" / "data" / "mini"
IMAGE_TOKEN = 99
PATCHES = 36
# What waits for the device.
SYNCS = ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "masked_select")

# Models this small compute on one thread sooner than several threads wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the data recorded from the research code."""
    return GOLDEN


@pytest.fixture(scope="session")
def selection_inputs() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "selection" / "inputs.safetensors")


@pytest.fixture
def use(monkeypatch):
    """`use("triton")`, `use("torch")`: who selects and gathers from here on."""
    return lambda mode: monkeypatch.setenv("DART_KERNELS", mode)


def selection_cases(family: str) -> list[dict]:
    return json.loads((GOLDEN / "selection" / f"cases_{family}.json").read_text())["cases"]


def tiny_llava(attention: str = "sdpa", seed: int = 0) -> LlavaForConditionalGeneration:
    """A random LLaVA of transformers' class: 4 decoder layers, 36 visual tokens a picture, vocabulary of 100."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model


def prompt(text_before: int, text_after: int, images: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids [1, S], pixel_values [images, 3, 24, 24]) of a random prompt; pictures come one after the other."""
    generator = torch.Generator().manual_seed(seed)
    middle = [torch.full((PATCHES,), IMAGE_TOKEN)]
    for _ in range(images - 1):
        middle += [torch.randint(2, 90, (1,), generator=generator), torch.full((PATCHES,), IMAGE_TOKEN)]
    before = torch.randint(2, 90, (text_before,), generator=generator)
    after = torch.randint(2, 90, (text_after,), generator=generator)
    pixels = torch.randn(images, 3, 24, 24, generator=generator)
    return torch.cat([before, *middle, after])[None], pixels


@contextmanager
def no_host_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What waits for the device raises AssertionError in here."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a host sync")

    with monkeypatch.context() as patch:
        for name in SYNCS:
            patch.setattr(torch.Tensor, name, refuse)
        patch.setattr(torch, "nonzero", refuse)
        yield


def first_questions(root: Path, count: int) -> Path:
    """A data folder with the first questions of TextVQA-mini alone."""
    shutil.copytree(MINI / "textvqa", root / "textvqa")
    path = root / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    return root
