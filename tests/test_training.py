"""Hugging Face's Trainer and accelerate on a pruned model."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import IMAGE_TOKEN, prompt, tiny_llava
from qwen_golden import loaded
from qwen_golden import prompt as qwen_prompt
from torch import nn
from transformers import Trainer, TrainingArguments

import dart
from dart.engine.norms import norm_in_blocks, rms_norm

KEEP = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2)
STEPS = 20


def train(model, row, folder, **options):
    """The losses of 20 steps on one prompt."""
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, learning_rate=3e-3, logging_steps=1, report_to=[], use_cpu=True, **options
    )
    arguments = arguments.set_save(strategy="no")
    trainer = Trainer(model, arguments, train_dataset=[row] * STEPS, data_collator=lambda rows: rows[0])
    with dart.prune(model, KEEP) as handle:
        trainer.train()
    assert handle.last.visual_after[0] < handle.last.visual_before[0]
    return [each["loss"] for each in trainer.state.log_history if "loss" in each]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_twenty_steps_of_llava(tmp_path, checkpointing):
    ids, pixels = prompt(5, 9)
    labels = torch.where(ids == IMAGE_TOKEN, -100, ids)
    row = {"input_ids": ids, "pixel_values": pixels, "labels": labels}
    losses = train(tiny_llava(), row, tmp_path, gradient_checkpointing=checkpointing)
    assert len(losses) == STEPS and losses[-1] < losses[0] / 2


def test_a_loss_over_all_tokens_is_refused_by_name():
    """TRL's, which computes it from hidden states inside the model's forward."""
    ids, pixels = prompt(5, 9)
    model = tiny_llava()
    with dart.prune(model, KEEP), pytest.raises(ValueError, match="TRL's loss .*compute_loss = transformers.Trainer"):
        model(input_ids=ids, pixel_values=pixels, labels=ids, fused_lm_head=True)


def test_twenty_steps_of_qwen(tmp_path):
    row = qwen_prompt(4, ("image", 1, 12, 12), 9, seed=1)
    row["labels"] = torch.where(row["mm_token_type_ids"] > 0, -100, row["input_ids"])
    model = copy.deepcopy(loaded("qwen2_5_vl"))  # other tests share the one that is loaded
    losses = train(model, row, tmp_path)
    assert len(losses) == STEPS and losses[-1] < losses[0]


@pytest.mark.parametrize("where", ["cpu", "disk"])
@torch.no_grad()
def test_offloaded_models(tmp_path, where):
    ids, pixels = prompt(5, 7)
    with dart.prune(tiny_llava(), KEEP) as handle:
        wanted = handle.model(input_ids=ids, pixel_values=pixels).logits
    model = tiny_llava()
    if where == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    with dart.prune(model, KEEP):
        assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, wanted)


class Elsewhere(nn.Module):
    """A norm that says which tensors it was given; its weight lies on the meta device until it is called."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="meta"))
        self.called = 0

    def forward(self, hidden):
        self.called += 1
        return hidden * 2


def test_a_norm_without_its_weight_is_called_and_not_read():
    """Offloaded, partitioned (ZeRO-3) and sharded (FSDP) norms are brought by the hooks around the module's call."""
    norm, hidden = Elsewhere(8), torch.randn(1, 3, 8)
    assert torch.equal(norm_in_blocks(norm, hidden), hidden * 2) and norm.called == 1
    assert rms_norm(norm, hidden) is None
    decoder_norm = tiny_llava().model.language_model.norm
    states = torch.randn(1, 3, 32)
    assert rms_norm(decoder_norm, states) is not None
    decoder_norm.weight.ds_id = 3  # DeepSpeed's mark on a partitioned parameter
    assert rms_norm(decoder_norm, states) is None


@torch.no_grad()
def test_tensors_follow_the_layer():
    """Hidden states of the meta device stand in for a second device: what is gathered there comes from rows here."""
    from dart.engine.layers import gather_argument, gather_tokens

    rows = torch.tensor([[0, 2, 3]])
    assert gather_tokens(torch.empty(1, 5, 4, device="meta"), rows, -2).device.type == "meta"
    angles = gather_argument("position_embeddings", (torch.empty(1, 5, 2, device="meta"),) * 2, rows, 5, False)
    assert [each.device.type for each in angles] == ["meta", "meta"]
