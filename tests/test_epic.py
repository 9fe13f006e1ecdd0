"""DART and EPIC in training: schedules, loss and mask by hand, what is logged, resuming, and a user's own Trainer."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import IMAGE_TOKEN, prompt, tiny_llava
from test_llava_train import (  # noqa: F401  (fixtures)
    ROOT,
    STEPS,
    StopAfter,
    arguments_of,
    base,
    data,
    losses_of,
    script,
)
from transformers import Trainer, TrainerCallback, TrainingArguments

import dart
from dart.epic import PRESETS, EpicCallback, EpicTrainer, Ramp, answer_logits, distillation
from dart.training import DartCallback, DartTrainer, uniform
from dart.utils import UserError
from llava.train import train
from llava.train.train import LlavaEpicTrainer

CONFIG = dart.DartConfig(image_pivots=2, text_pivots=2)


def test_kl_and_mask_by_hand():
    teacher = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)  # 3/4, 1/4
    student = torch.zeros(1, 2, requires_grad=True)  # 1/2, 1/2
    loss = distillation(student, teacher, 1.0)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    loss.sum().backward()
    assert teacher.grad is None and student.grad is not None
    assert distillation(student, teacher * 2, 2.0).item() == pytest.approx(4 * loss.item(), rel=1e-5)
    # Tokens: question, answer, end, padding; those are learned which logits 0 and 1 predict.
    logits = torch.arange(8.0).view(1, 4, 2)
    assert answer_logits(logits, torch.tensor([[-100, 5, 2, -100]])).tolist() == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("preset", "progress", "least", "most", "gap"),
    [
        ("tcd", 0.0, 0.0, 0.05, 0.05),
        ("tcd", 0.5, 0.25, 0.475, 0.175),
        ("tcd", 1.0, 0.5, 0.9, 0.3),
        ("tcd-coded", 0.0, 0.1, 0.1, 0.1),
        ("tcd-coded", 0.5, 0.18, 0.42, 0.3),
        ("tcd-coded", 1.0, 0.26, 0.74, 0.3),
        ("lcd", 0.5, 0.2, 0.9, 0.175),
    ],
)
def test_ratios_at_start_middle_and_end(preset, progress, least, most, gap):
    for draw, student in ((0.0, least), (1.0, most)):
        got = PRESETS[preset].ratios(progress, 32, draw)
        assert got == pytest.approx((student, max(student - gap, 0.0)))


def test_the_layer_moves_from_deep_to_shallow():
    lcd, icd = PRESETS["lcd"], PRESETS["icd"]
    assert [lcd.layer(p, 32) for p in (0.0, 0.5, 1.0)] == [32, 17, 2]
    assert PRESETS["tcd"].layer(0.5, 32) is None
    layers = [icd.layer(step / 3000, 32) for step in range(3001)]
    most = [icd.ratios(step / 3000, 32, 1.0)[0] for step in range(3001)]
    for step in range(1, 3001):
        assert layers[step] <= layers[step - 1]
        assert (most[step] < most[step - 1]) == (layers[step] < layers[step - 1]), step  # begins anew at a new layer
    assert most[0] == pytest.approx(0.05) and max(most) == pytest.approx(0.9, abs=0.01)


def test_student_and_teacher_of_a_step():
    callback = EpicCallback(replace(CONFIG, strategy="random"), PRESETS["tcd"], 4)
    student, teacher = callback.configs(0, 30, 60)
    assert student.seed == teacher.seed == 30 and student.reduction_ratio > teacher.reduction_ratio
    assert callback.configs(0, 30, 60) == (student, teacher) != callback.configs(1, 30, 60)
    first, _ = EpicCallback(CONFIG, PRESETS["lcd"], 4).configs(0, 0, 60)
    assert first.layer == 3 and first.reduction_ratio == 0  # behind the last layer: nothing is dropped
    assert len({uniform(0, step) for step in range(20)}) == 20
    with pytest.raises(ValueError, match="layers of its own"):
        EpicCallback(replace(CONFIG, strategy="pyramiddrop"), PRESETS["lcd"], 4)
    with pytest.raises(ValueError, match="layer=4 drops nothing"):
        EpicCallback(replace(CONFIG, layer=4), PRESETS["tcd"], 4)


# A user's own Trainer.


def row_of(images: int = 1, seed: int = 0) -> dict:
    ids, pixels = prompt(5, 9, images, seed)
    labels = ids.masked_fill(ids == IMAGE_TOKEN, -100)
    labels[:, :-4] = -100
    return {"input_ids": ids, "labels": labels} | ({"pixel_values": pixels} if images else {})


def text_row() -> dict:
    ids = torch.arange(2, 14)[None]
    return {"input_ids": ids, "labels": ids.clone()}


def trainer_of(kind, folder, row, callbacks=(), **more):
    arguments = TrainingArguments(str(folder), max_steps=4, logging_steps=1, report_to=[], use_cpu=True, save_steps=100)
    return kind(
        tiny_llava(),
        arguments,
        train_dataset=[row] * 4,
        data_collator=lambda rows: rows[0],
        callbacks=list(callbacks),
        **more,
    )


class Fails(TrainerCallback):
    def on_step_end(self, *_, **__):
        raise RuntimeError("stop")


class Mine(DartTrainer, Trainer):
    pass


class Distils(EpicTrainer, Trainer):
    pass


def test_a_callback_prunes_a_plain_trainer_and_goes(tmp_path):
    seen = []

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            seen.append(dart.handle_of(model).last.visual_after[0])

    pruning = DartCallback(CONFIG, range(8, 30))
    trainer = trainer_of(Trainer, tmp_path, row_of(), [pruning, Looks()])
    trainer.train()
    assert len(set(seen)) > 1 and all(kept < 36 for kept in seen) and dart.handle_of(trainer.model) is None
    with DartCallback(CONFIG) as pruning, pytest.raises(RuntimeError, match="stop"):
        trainer = trainer_of(Trainer, tmp_path, row_of(), [pruning, Fails()])
        trainer.train()
    assert dart.handle_of(trainer.model) is None
    for kind, more in ((Mine, {"pruning": DartCallback(CONFIG)}), (Distils, {"epic": "tcd", "config": CONFIG})):
        trainer = trainer_of(kind, tmp_path, row_of(), [Fails()], **more)
        with pytest.raises(RuntimeError, match="stop"):
            trainer.train()
        assert dart.handle_of(trainer.model) is None


HARD = replace(PRESETS["tcd"], least=Ramp(0.7, 0.7), most=Ramp(0.7, 0.7), gap=Ramp(0.5, 0.5))


@pytest.mark.parametrize("strategy", ["dart", "fastv", "random"])
@pytest.mark.parametrize("images", [1, 2])
def test_the_loss_against_two_forwards(tmp_path, strategy, images):
    row, config = row_of(images), replace(CONFIG, strategy=strategy)
    trainer = trainer_of(Distils, tmp_path, row, epic=HARD, config=config)
    wanted = []
    model = tiny_llava()
    model.config.use_cache = False
    for ratio in (0.2, 0.7):
        with dart.prune(model, replace(config, keep=None, reduction_ratio=ratio)), torch.no_grad():
            wanted.append(model(**row))
    assert wanted[0].logits.shape != wanted[1].logits.shape
    ours, theirs = (each.logits[0, -5:-1].log_softmax(-1) for each in reversed(wanted))
    kl = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss_distill"] == pytest.approx(kl.item(), rel=1e-3) and kl > 0
    assert first["loss_sft"] == pytest.approx(wanted[1].loss.item(), rel=1e-3)
    assert first["loss"] == pytest.approx(0.3 * first["loss_sft"] + 0.7 * first["loss_distill"], rel=1e-3)
    assert first["ratio_student"] == 0.7 and first["ratio_gap"] == pytest.approx(0.5)
    assert (tmp_path / "epic.png").stat().st_size > 1000


@pytest.mark.parametrize("row", [row_of(), text_row()], ids=["no gap", "text"])
def test_no_gap_and_text_alone_have_nothing_to_distil(tmp_path, row):
    same = replace(HARD, gap=Ramp(0.0, 0.0)) if "pixel_values" in row else HARD
    trainer = trainer_of(Distils, tmp_path, row, epic=same, config=CONFIG)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4 and all(entry["loss_distill"] == pytest.approx(0, abs=1e-6) for entry in logs)
    assert logs[0]["loss_sft"] > 1


# LLaVA.


@pytest.mark.parametrize("preset", ["tcd", "icd"])
def test_interrupted_and_resumed_equals_undisturbed(base, data, tmp_path, preset):  # noqa: F811
    """Rows of text and of two pictures among them."""

    class Interrupted(LlavaEpicTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, callbacks=[StopAfter()])

    def arguments(name):
        return arguments_of(base, data, tmp_path / name, "--epic", preset, "--gradient_checkpointing", "True")

    whole = train.train(arguments("whole"))
    train.train(arguments("parts"), Interrupted)
    resumed = train.train(arguments("parts"))
    assert len(losses_of(whole)) == STEPS and losses_of(resumed) == losses_of(whole)
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    assert any(entry["loss_distill"] > 0 for entry in logs)
    assert [entry["ratio_gap"] for entry in logs] == [
        entry["ratio_gap"] for entry in resumed.state.log_history if "loss" in entry
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--epic", "xcd"), "--epic must be one of tcd"),
        (("--epic", "tcd", "--keep", "64"), "--keep 64"),
        (("--alpha", "0.5"), "--alpha and --temperature are of --epic"),
        (("--epic", "tcd", "--alpha", "2"), "weight must be between 0 and 1"),
    ],
)
def test_mistakes(base, data, tmp_path, flags, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        train.train(arguments_of(base, data, tmp_path, *flags))


def test_two_steps_of_the_script(tmp_path):
    out = {"NPROC": "1", "STEPS": "2", "OUT": str(tmp_path), "DEEPSPEED": "none"}
    result = script(ROOT / "scripts/v1_5/finetune_epic.sh", "tcd", "--gradient_accumulation_steps", "1", **out)
    assert result.returncode == 0, result.stderr
    assert "the embedded tiny model is trained for 2 steps" in result.stdout.splitlines()[0]
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 2 and (tmp_path / "epic.png").exists()
