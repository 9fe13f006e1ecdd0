"""TRL's SFTTrainer on a pruned model: docs/training.md's recipe (make test-train)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import dart
from dart.epic import EpicTrainer
from dart.training import DartCallback, DartTrainer

trl = pytest.importorskip("trl")
MODEL = Path(__file__).resolve().parents[1] / "playground" / "models" / "qwen2_5-vl-tiny"
COLORS = ("red", "green", "blue", "gray")
KEEP = 8


class Pruned(DartTrainer, trl.SFTTrainer):
    """As a user writes it."""


class Distilled(EpicTrainer, trl.SFTTrainer):
    """EPIC in TRL."""


def given(folder: Path) -> dict:
    """What every trainer gets: the model, four pictures with a question each, three steps of two rows."""
    datasets = pytest.importorskip("datasets")

    def said(role: str, *content: dict) -> dict:
        return {"role": role, "content": list(content)}

    rows = []
    for k, color in enumerate(COLORS):
        asked = said("user", {"type": "image"}, {"type": "text", "text": "What color?" + " Say it." * k})
        rows.append(
            {
                "images": [Image.new("RGB", (112, 112), color)],
                "prompt": [asked],
                "completion": [said("assistant", {"type": "text", "text": color})],
            }
        )
    args = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        logging_steps=1,
        learning_rate=1e-3,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    return {
        "model": AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32),
        "processing_class": AutoProcessor.from_pretrained(MODEL),
        "train_dataset": datasets.Dataset.from_list(rows),
        "args": args,
    }


def losses(trainer) -> list[float]:
    trainer.train()
    assert not trainer.model._forward_pre_hooks
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trl_learns_with_few_tokens(tmp_path):
    config = dart.DartConfig(keep=KEEP, exact=True)
    pruned = Pruned(**given(tmp_path), pruning=DartCallback(config))
    found = losses(pruned)
    assert pruned.state.log_history[0]["visual_tokens_kept"] == KEEP < pruned.state.log_history[0]["visual_tokens"]
    assert found[-1] < found[0]
    whole = dart.DartConfig(keep=10**6)
    unpruned = losses(trl.SFTTrainer(**given(tmp_path)))
    assert losses(Pruned(**given(tmp_path), pruning=DartCallback(whole))) == pytest.approx(unpruned, rel=1e-5)
    assert losses(Pruned(**given(tmp_path))) == unpruned != pytest.approx(found, rel=1e-3)


def test_the_first_loss_is_that_of_the_pruned_model(tmp_path):
    config = dart.DartConfig(keep=KEEP, exact=True)
    trainer = Pruned(**given(tmp_path), pruning=DartCallback(config))
    batch = next(iter(trainer.get_train_dataloader()))
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32)
    with dart.prune(model, config), torch.no_grad():
        expected = model(**{k: v for k, v in batch.items() if k != "num_items_in_batch"}).loss.item()
    torch.manual_seed(trainer.args.seed)
    assert min(abs(found - expected) for found in losses(trainer)[:2]) < 1e-4


def test_epic_in_trl(tmp_path):
    pytest.importorskip("matplotlib")
    trainer = Distilled(**given(tmp_path), epic="tcd", config=dart.DartConfig(exact=True))
    assert len(losses(trainer)) == 3
    assert all(entry["loss_distill"] >= 0 for entry in trainer.state.log_history if "loss" in entry)
    assert (tmp_path / "epic.png").is_file()


def test_a_callback_alone_is_refused_in_one_line(tmp_path):
    trainer = trl.SFTTrainer(**given(tmp_path), callbacks=[DartCallback(dart.DartConfig(keep=KEEP))])
    with pytest.raises(ValueError, match=re.escape("class Mine(DartTrainer, SFTTrainer)")):
        trainer.train()
