"""`kill -9` at any moment of a training, and the same command again: the losses and weights of an undisturbed run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from test_llava_train import base, data  # noqa: F401  (fixtures)
from train_runs import MOMENTS, results_of

from dart.utils import UserError
from llava.train import train
from llava.train.arguments import parse
from llava.train.checkpoints import clear, to_resume

STEPS = 6
ALONE = [name for name in MOMENTS if name != "with_a_late_rank"]


def words_of(base: Path, data: Path, out: Path, *more: object) -> list[str]:  # noqa: F811
    words = [
        "--model_name_or_path",
        base,
        "--data_path",
        data / "data.json",
        "--image_folder",
        data,
        "--output_dir",
        out,
    ]
    words += ["--max_steps", STEPS, "--save_steps", 2, "--save_total_limit", 1, "--logging_steps", 1]
    words += ["--per_device_train_batch_size", 2, "--learning_rate", 1e-2, "--strategy", "random", "--keep", "8-30"]
    return [str(word) for word in (*words, "--report_to", "none", "--disable_tqdm", "True", *more)]


def losses_in(out: Path) -> list[float]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_killed_run_that_is_started_again_equals_the_undisturbed_one(base, data, tmp_path):  # noqa: F811
    def job(name: str, moment: str | None = None) -> dict:
        return {"words": words_of(base, data, tmp_path / name), "log": str(tmp_path / f"{name}.log"), "moment": moment}

    jobs = [job("whole"), *(each for name in ALONE for each in (job(name, name), job(name)))]
    codes = results_of(jobs, tmp_path)
    assert codes[0] == [0]
    wanted, weights = losses_in(tmp_path / "whole"), (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert len(wanted) == len(set(wanted)) == STEPS
    for number, name in enumerate(ALONE):
        said = (tmp_path / f"{name}.log").read_text()
        assert codes[2 * number + 1 : 2 * number + 3] == [[-signal.SIGKILL], [0]], said
        assert ("goes on from" in said) == (name != "before_the_first_step"), said
        assert losses_in(tmp_path / name) == wanted, name
        assert (tmp_path / name / "model.safetensors").read_bytes() == weights, name


def test_a_checkpoint_is_whole_once_every_rank_has_written_its_part(base, data, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    words = words_of(base, data, out, "--max_steps", 2, "--per_device_train_batch_size", 1)
    job = {"words": words, "log": str(tmp_path / "log"), "ranks": 2, "moment": "with_a_late_rank"}
    (codes,) = results_of([job], tmp_path)
    assert codes[0] == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert to_resume(str(out), None, False) == str(out / "checkpoint-2")
    assert {path.name for path in out.glob("checkpoint-2/rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def checkpoint(out: Path, step: int, *files: str) -> Path:
    folder = out / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text('{"global_step": 1}')
    return folder


def test_a_run_that_starts_anew_leaves_nothing_to_go_on_from_by_mistake(tmp_path):
    """Else a new run that is killed at step 3 would go on from step 6 of the one before it."""
    old = checkpoint(tmp_path, 6, "trainer_state.json", "rng_state.pth")
    assert to_resume(str(tmp_path), None, False) == str(old)
    with pytest.raises(UserError, match="--resume_from_checkpoint False: .*has checkpoint-6 of an earlier run"):
        to_resume(str(tmp_path), "False", False)
    (tmp_path / "model.safetensors").write_text("")
    assert to_resume(str(tmp_path), None, True) is None
    clear(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert to_resume(str(tmp_path), "False", False) is None


def test_weights_without_their_optimizer_are_nothing_to_go_on_from(tmp_path):
    checkpoint(tmp_path, 3, "trainer_state.json")  # of --save_only_model
    with pytest.raises(UserError, match="checkpoint-3 has weights alone .*--save_only_model"):
        to_resume(str(tmp_path), None, False)


def test_a_checkpoint_that_is_written_once_more_is_unfinished_until_its_end(base, data, tmp_path):  # noqa: F811
    """A kill would leave new weights beside an older optimizer, and the state file would call them whole."""
    out = tmp_path / "out"
    older = checkpoint(out, 2, "rng_state.pth")
    (older / "trainer_state.json").write_text("{}")
    seen = []

    class Looks(train.LlavaTrainer):
        def _save_optimizer_and_scheduler(self, folder):
            seen.append((folder, (Path(folder) / "trainer_state.json").exists()))
            super()._save_optimizer_and_scheduler(folder)

    train.train(parse(words_of(base, data, out, "--max_steps", 2)), Looks)
    assert seen == [(str(older), False)] and to_resume(str(out), None, False) == str(older)
