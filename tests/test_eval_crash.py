"""kill -9 at random moments of answering: a resumed run's answers file is that of a run that nobody disturbed."""

import argparse
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from llava.eval.engine import loop
from llava.eval.engine.examples import Example
from llava.eval.engine.ranks import parts_of
from tests.test_eval_loop import arguments

KILLS, QUESTIONS, PICTURES = 10, 60, 6
LATEST = 0.8  # of the answers file: a kill later than this might come after the end
LONGEST_DELAY, DEADLINE = 0.04, 120  # seconds
FORK = multiprocessing.get_context("fork")  # the checkpoint is loaded once, before the processes part


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(PICTURES):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
            folder / f"{k}.png"
        )
    return [Example(k, f"What is it? {k}", folder / f"{k % PICTURES}.png") for k in range(QUESTIONS)]


def arguments_for(answers):
    parser = argparse.ArgumentParser()
    loop.add_loop_arguments(parser)
    return parser.parse_args(arguments(answers.parent, answers, "--sparse"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return loop.load(arguments_for(tmp_path_factory.mktemp("any") / "a.jsonl"))


def answer(answers, loaded, examples, rank, count):
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    loop.run(arguments_for(answers), loaded, examples)


@pytest.fixture
def start(loaded, examples):
    begun = []

    def start_process(answers, rank=0, count=1):
        begun.append(FORK.Process(target=answer, args=(answers, loaded, examples, rank, count)))
        begun[-1].start()
        return begun[-1]

    yield start_process
    for process in begun:
        process.kill()
        process.join()


def finish(process):
    process.join(DEADLINE)
    assert process.exitcode == 0


def kill_when(process, path, size):
    """kill -9 as soon as the file has `size` bytes."""
    deadline = time.monotonic() + DEADLINE
    while (not path.is_file() or path.stat().st_size < size) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.uniform(0, LONGEST_DELAY))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"


@pytest.fixture(scope="module")
def undisturbed(loaded, examples, tmp_path_factory):
    answers = tmp_path_factory.mktemp("whole") / "a.jsonl"
    process = FORK.Process(target=answer, args=(answers, loaded, examples, 0, 1))
    process.start()
    finish(process)
    whole = answers.read_bytes()
    assert [json.loads(line)["question_id"] for line in whole.splitlines()] == list(range(QUESTIONS))
    return whole


def test_ten_kills_and_resumes_write_what_one_run_writes(undisturbed, start, tmp_path):
    random.seed(0)
    answers = tmp_path / "a.jsonl"
    for size in sorted(random.sample(range(int(LATEST * len(undisturbed))), KILLS)):
        kill_when(start(answers), answers, size)
        assert undisturbed.startswith(answers.read_bytes())
    finish(start(answers))
    assert answers.read_bytes() == undisturbed


def test_a_killed_process_of_two_holds_up_nobody_and_loses_nothing(undisturbed, start, tmp_path):
    random.seed(0)
    answers = tmp_path / "a.jsonl"
    for fraction in (0.1, 0.3):
        first, second = (start(answers, rank, 2) for rank in (0, 1))
        kill_when(first, answers.with_name(f"{answers.name}.part0of2"), fraction * len(undisturbed))
        finish(second)
        assert not answers.exists() and len(parts_of(answers)) == 2
    for process in [start(answers, rank, 2) for rank in (0, 1)]:
        finish(process)
    assert answers.read_bytes() == undisturbed and parts_of(answers) == []
