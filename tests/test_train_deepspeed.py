"""Two processes under DeepSpeed equal one without it, EPIC too; every script under DeepSpeed (make test-train)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_llava_train import ROOT, SCRIPTS, base, data, script  # noqa: F401  (fixtures)
from train_runs import results_of

pytest.importorskip("deepspeed")
STEPS = 3  # of four rows: an epoch of the thirteen ends with a part of a step
WAYS = {
    "plain": (),
    "dart": ("--strategy", "dart", "--keep", "8-30"),
    "tcd": ("--epic", "tcd"),
    "lcd": ("--epic", "lcd"),
    "tcd-lora": ("--epic", "tcd", "--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0"),
}


def job(base: Path, data: Path, out: Path, ranks: int, *more: str) -> dict:  # noqa: F811
    """Four rows a step, in the file's order: with two processes one has pictures where the other has text."""
    words = ["--model_name_or_path", base, "--data_path", data / "data.json", "--image_folder", data]
    words += ["--output_dir", out, "--max_steps", STEPS, "--logging_steps", 1, "--learning_rate", 1e-2]
    words += ["--per_device_train_batch_size", 4 // ranks, "--save_steps", 100, "--report_to", "none"]
    words += ["--disable_tqdm", "True", *more]
    return {"words": [str(word) for word in words], "log": f"{out}.log", "ranks": ranks}


def logged(out: Path, name: str) -> list[float]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_under_zero_2_equal_one_without_it(base, data, tmp_path, way):  # noqa: F811
    zero = ("--deepspeed", str(ROOT / "scripts" / "zero2.json"), "--bf16", "False")
    one, two = tmp_path / "one", tmp_path / "two"
    jobs = [job(base, data, one, 1, *WAYS[way]), job(base, data, two, 2, *WAYS[way], *zero)]
    codes = results_of(jobs, tmp_path)
    assert codes == [[0], [0, 0]], Path(f"{one}.log").read_text() + Path(f"{two}.log").read_text()
    losses = logged(one, "loss")
    assert len(losses) == len(set(losses)) == STEPS
    assert logged(two, "loss") == pytest.approx(losses, rel=1e-4)
    for name in ("ratio_student", "ratio_teacher", "loss_sft", "loss_distill"):
        assert bool(logged(one, name)) == ("--epic" in WAYS[way])
        assert logged(two, name) == pytest.approx(logged(one, name), rel=2e-4, abs=1e-7), name


@pytest.mark.parametrize("flags", [("--strategy", "dart", "--keep", "8"), ("--epic", "tcd")], ids=lambda each: each[0])
def test_dropping_tokens_under_zero_3_is_refused(base, data, tmp_path, flags):  # noqa: F811
    zero = ("--deepspeed", str(ROOT / "scripts" / "zero3.json"), "--bf16", "False")
    (codes,) = results_of([job(base, data, tmp_path / "out", 1, *flags, *zero)], tmp_path)
    assert codes == [2]
    line = (tmp_path / "out.log").read_text().splitlines()[-1]
    assert re.match(rf"error: {flags[0]} .*cannot run under ZeRO-3: .*use scripts/zero2.json", line), line


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_script_trains_the_embedded_model_under_deepspeed(path, tmp_path):
    words = ("tcd",) if path.stem == "finetune_epic" else ()
    ran = script(path, *words, STEPS="2", BATCH="1", OUT=str(tmp_path / "out"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no GPU: on the CPU in 2 process(es), DeepSpeed zero2" in ran.stdout.splitlines()
    assert json.loads(ran.stdout.splitlines()[-1])["steps"] == 2
    written = {file.name for file in (tmp_path / "out").iterdir()}
    expected = {"pretrain": "mm_projector.bin"}.get(path.stem, "model.safetensors")
    assert ("non_lora_trainables.bin" if path.stem.endswith("lora") else expected) in written, written
