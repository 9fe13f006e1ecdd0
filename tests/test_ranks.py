"""One evaluation on several processes: equal to one process, whatever dies on the way."""

import json
import subprocess
import sys

import pytest

from llava.cli_errors import UserError
from llava.eval.ranks import Ranks, parts_of
from tests.test_eval_loop import QUESTIONS, ROOT, arguments, command, data, run, whole  # noqa: F401  (fixtures)


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
        from llava.eval.model_vqa_loader import main

        main(arguments(data, answers, "--sparse"))
        assert not answers.exists(), "not all questions are answered yet"
    place(1, 3)
    assert run(data, answers, "--sparse") == whole
    assert parts_of(answers) == []


def test_another_number_of_processes_finishes_what_a_dead_one_left(data, whole, tmp_path, place):  # noqa: F811
    answers = tmp_path / "a.jsonl"
    place(0, 2)
    from llava.eval.model_vqa_loader import main

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


def test_accelerate_launch_equals_one_process(data, whole, tmp_path):  # noqa: F811
    answers = tmp_path / "a.jsonl"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    subprocess.run([*launcher, *command(data, answers, "--sparse")[1:]], check=True, cwd=ROOT, capture_output=True)
    assert answers.read_bytes() == whole
    assert len([json.loads(line) for line in whole.splitlines()]) == QUESTIONS
