"""TRL's SFTTrainer with a pruned Qwen2-VL, as docs/training.md writes it (make test-train)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer

import dart
from dart.epic import EpicTrainer
from dart.training import DartCallback
from llava.files import EMBEDDED_MODEL

trl = pytest.importorskip("trl", reason="TRL has an environment of its own: make test-train")
datasets = pytest.importorskip("datasets")

FOLDER = EMBEDDED_MODEL.parent / "qwen2-vl-tiny"
COLORS = ("red", "green", "blue", "gray")
SIDE = 112
KEEP = dart.DartConfig(keep=24)


def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


class Pruned(trl.SFTTrainer):
    compute_loss = Trainer.compute_loss


def trainer_of(kind, folder, callbacks=(), **more):
    rows = [
        {
            "images": [Image.new("RGB", (SIDE, SIDE), color)],
            "prompt": [{"role": "user", "content": "What color?"}],
            "completion": [{"role": "assistant", "content": color}],
        }
        for color in COLORS
    ]
    arguments = trl.SFTConfig(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=None,
        save_strategy="no",
        **more,
    )
    return kind(
        model(),
        arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(FOLDER),
        callbacks=list(callbacks),
    )


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_without_pruning_is_trls_own(tmp_path):
    wanted = losses_of(trainer_of(trl.SFTTrainer, tmp_path / "own"))
    assert losses_of(trainer_of(Pruned, tmp_path / "ours")) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pruned_run(tmp_path, checkpointing):
    with DartCallback(KEEP) as pruning:
        trainer = trainer_of(Pruned, tmp_path, [pruning], gradient_checkpointing=checkpointing)
        batch = next(iter(trainer.get_train_dataloader()))
        losses = losses_of(trainer)
    assert dart.handle_of(trainer.model) is None
    with dart.prune(model(), KEEP) as handle, torch.no_grad():
        wanted = handle.model(**batch, use_cache=False).loss
    assert all(kept < seen for seen, kept in zip(handle.last.visual_before, handle.last.visual_after, strict=True))
    learned = (batch["labels"] != -100).sum(1)
    assert (learned > 0).all() and (learned < 10).all()  # the completion alone
    assert losses[0] == pytest.approx(wanted.item(), rel=1e-4)


def test_without_the_loss_of_transformers_it_is_refused(tmp_path):
    with DartCallback(KEEP) as pruning, pytest.raises(ValueError, match="TRL's loss .*compute_loss"):
        trainer_of(trl.SFTTrainer, tmp_path, [pruning]).train()


class Distilled(EpicTrainer, Pruned):
    """EPIC in TRL."""


def test_epic(tmp_path):
    pytest.importorskip("matplotlib")
    trainer = trainer_of(partial(Distilled, epic="tcd", config=KEEP), tmp_path)
    losses = losses_of(trainer)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == len(set(losses)) == 2 and all(entry["loss_distill"] > 0 for entry in logged)
    assert [entry["loss"] for entry in logged] == pytest.approx(
        [0.3 * entry["loss_sft"] + 0.7 * entry["loss_distill"] for entry in logged], rel=1e-4
    )
    assert (tmp_path / "epic.png").is_file()
