"""One evaluation on several processes: equal to one process, whatever dies on the way."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dart.utils import UserError
from llava.eval.engine.loop import add_loop_arguments, load
from llava.eval.engine.loop import run as loop_run
from llava.eval.engine.ranks import Ranks, parts_of
from llava.eval.model_vqa_loader import main
from tests.test_eval_loop import (  # noqa: F401  (data and whole are fixtures)
    QUESTIONS,
    ROOT,
    arguments,
    command,
    data,
    refused,
    run,
    whole,
)

LIMIT_SECONDS = 120


@pytest.fixture
def place(monkeypatch):
    def set_place(index, count):
        monkeypatch.setenv("RANK", str(index))
        monkeypatch.setenv("WORLD_SIZE", str(count))

    return set_place


def test_alone_without_a_launcher():
    assert Ranks.from_environment() == Ranks(0, 1, 0)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_place_that_is_none_is_refused(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match="no place among processes"):
        Ranks.from_environment()


def test_the_last_process_merges_in_the_order_of_the_questions(data, whole, tmp_path, place):  # noqa: F811
    answers = tmp_path / "a.jsonl"
    for index in (2, 0):
        place(index, 3)
        main(arguments(data, answers, "--sparse"))
        assert not answers.exists(), "not all questions are answered yet"
    place(1, 3)
    assert run(data, answers, "--sparse") == whole
    assert parts_of(answers) == []


def test_another_number_of_processes_finishes_what_a_dead_one_left(data, whole, tmp_path, place):  # noqa: F811
    answers = tmp_path / "a.jsonl"
    place(0, 2)
    main(arguments(data, answers, "--sparse"))
    (part,) = parts_of(answers)
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote its last line
    place(0, 1)
    assert run(data, answers, "--sparse") == whole
    assert parts_of(answers) == []


def test_parts_of_another_setting_are_refused(data, tmp_path, place, capsys):  # noqa: F811
    answers = tmp_path / "a.jsonl"
    run(data, answers, "--sparse")
    before = answers.read_bytes()
    place(1, 2)
    with pytest.raises(SystemExit) as stop:
        run(data, answers, "--sparse", "--max_num_trunction", "64")
    assert stop.value.code == 2
    assert "another run" in capsys.readouterr().err
    assert answers.read_bytes() == before and parts_of(answers) == []


def test_only_the_first_of_several_goes_on_when_nothing_was_left(data, tmp_path, place):  # noqa: F811
    parser = argparse.ArgumentParser()
    add_loop_arguments(parser)
    args = parser.parse_args(arguments(data, tmp_path / "a.jsonl", "--sparse"))
    loaded = load(args)
    assert loop_run(args, loaded).complete is True
    for index, count, goes_on in ((1, 2, False), (0, 2, True), (0, 1, True)):
        place(index, count)
        assert loop_run(args, loaded).complete is goes_on


def test_parts_of_other_settings_are_refused_and_overwritten(data, tmp_path, place, capsys):  # noqa: F811
    answers = tmp_path / "a.jsonl"
    place(0, 2)
    main(arguments(data, answers, "--sparse"))
    place(0, 1)
    message = refused(capsys, data, answers, "--sparse", "--max_num_trunction", "64")
    assert "(dart.max_num_trunction: None there, 64 now)" in message
    alone = run(data, tmp_path / "alone.jsonl", "--sparse", "--max_num_trunction", "64")
    assert run(data, answers, "--sparse", "--max_num_trunction", "64", "--overwrite") == alone
    assert parts_of(answers) == []


# Without --multi_gpu and without a GPU, accelerate starts one process, whatever --num_processes says.
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCHER += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def test_accelerate_launch_equals_one_process_after_a_killed_rank(data, whole, tmp_path):  # noqa: F811
    answers = tmp_path / "a.jsonl"
    line = [*LAUNCHER, *command(data, answers, "--sparse")[1:]]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launcher = subprocess.Popen(line, **quiet)
    rank_one = answers.with_name(f"{answers.name}.part1of2")
    deadline = time.monotonic() + LIMIT_SECONDS
    while not rank_one.is_file() and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in psutil.Process(launcher.pid).children(recursive=True):
        if process.is_running() and any(Path(file.path) == rank_one for file in process.open_files()):
            process.kill()
    assert launcher.wait(LIMIT_SECONDS) != 0, "a rank was killed"
    assert not answers.exists()
    subprocess.run(line, check=True, timeout=LIMIT_SECONDS, **quiet)
    assert answers.read_bytes() == whole and parts_of(answers) == []
    assert len([json.loads(line) for line in whole.splitlines()]) == QUESTIONS
