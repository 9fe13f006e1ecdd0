"""The evaluation loop on the recorded tiny checkpoint: resuming, chunks, batches, crashes and bad input."""

import argparse
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dart.utils import UserError
from llava.eval.engine import loop
from llava.eval.engine.answers import AnswersFile
from llava.eval.engine.examples import Example
from llava.eval.engine.loop import add_loop_arguments, batches_of
from llava.eval.engine.sampling import GumbelNoise, seed_of

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "tests/golden/ckpt/llava-v1.5-tiny"
QUESTIONS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for k in range(QUESTIONS):
        # Noise: equal patches would tie in the selection, and ties may break differently in a batch.
        noise = np.random.default_rng(k).integers(0, 255, (50, 60 + 10 * k, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((300 + 50 * k, 250)).save(folder / f"{k}.png")
        text = "What is it? " * (1 + k % 3)
        rows.append({"question_id": k // 2, "image": f"{k}.png", "text": f"{text}{k}", "category": "x"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def arguments(data, answers, *more):
    return [
        *(
            "--model-path",
            str(CHECKPOINT),
            "--image-folder",
            str(data),
            "--question-file",
            str(data / "questions.jsonl"),
        ),
        *("--answers-file", str(answers), "--max_new_tokens", "3", "--device", "cpu", *more),
    ]


def command(data, answers, *more):
    return [sys.executable, "-m", "llava.eval.model_vqa_loader", *arguments(data, answers, *more)]


def run(data, answers, *more):
    from llava.eval.model_vqa_loader import main

    main(arguments(data, answers, *more))
    return answers.read_bytes()


def refused(capsys, data, answers, *more):
    with pytest.raises(SystemExit) as stop:
        run(data, answers, *more)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    errors = [line for line in message.splitlines() if "error: " in line]
    assert len(errors) == 1 and "Traceback" not in message
    return errors[0]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("whole") / "a.jsonl", "--sparse")


def test_answers_have_llavas_fields(whole):
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert len(rows) == QUESTIONS
    assert set(rows[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}


def test_header_states_tokens(data, tmp_path, capsys):
    run(data, tmp_path / "a.jsonl", "--sparse")
    assert "576 -> 132" in capsys.readouterr().out


def test_a_half_written_line_is_repaired_and_finished_questions_are_kept(data, tmp_path, whole, capsys):
    answers = tmp_path / "a.jsonl"
    run(data, answers, "--sparse")
    lines = whole.splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:3]) + lines[3][:17])
    capsys.readouterr()
    assert run(data, answers, "--sparse") == whole
    assert "3 answers are there already" in capsys.readouterr().out


def test_batches_equal_single_questions(data, tmp_path, whole):
    assert run(data, tmp_path / "a.jsonl", "--sparse", "--batch-size", "4") == whole


def test_pictures_are_read_ahead(data, tmp_path, whole):
    assert run(data, tmp_path / "a.jsonl", "--sparse", "--batch-size", "2", "--num-workers", "2") == whole


def test_workers_run_beside_a_gpu():
    def count(device, workers):
        model = argparse.Namespace(device=torch.device(device))
        loaded = loop.Loaded(None, model, None, "x")
        return loop.workers_of(argparse.Namespace(num_workers=workers), loaded)

    assert [count("cpu", None), count("cuda", None), count("cuda", 0), count("cpu", 3)] == [0, 2, 0, 3]


def test_chunks_join_to_the_whole(data, tmp_path, whole):
    parts = [
        run(data, tmp_path / f"{k}.jsonl", "--sparse", "--num-chunks", "4", "--chunk-idx", str(k)) for k in range(4)
    ]
    assert b"".join(parts) == whole


def test_kill_and_resume(data, tmp_path, whole):
    answers = tmp_path / "a.jsonl"
    process = subprocess.Popen(
        command(data, answers, "--sparse"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (answers.exists() and answers.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run(data, answers, "--sparse") == whole


def test_other_settings_are_not_resumed(data, tmp_path, capsys):
    answers = tmp_path / "a.jsonl"
    before = run(data, answers, "--sparse")
    message = refused(capsys, data, answers, "--sparse", "--max_num_trunction", "64")
    assert "None there, 64 now" in message and "--overwrite" in message
    assert answers.read_bytes() == before


def test_two_writers_are_refused(data, tmp_path, capsys):
    with AnswersFile(tmp_path / "a.jsonl", {}):
        assert "another process" in refused(capsys, data, tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--sparse", "--strategy", "drat"], "did you mean dart"),
        (["--sparse", "--reduction_ratio", "1.5"], "1.5"),
        (["--sparse", "--reduction_ratio", "0"], "0"),
        (["--sparse", "--image_token_start_index", "40"], "40 but the input's picture has 35"),
        (["--sparse", "--image_token_length", "100"], "100 but the input's picture has 576"),
        (["--conv-mode", "nope"], "nope"),
        (["--device", "nope"], "--device nope is not here"),
        (["--num_beams", "0"], "--num_beams must be 1 or more, got 0"),
        (["--top_p", "0"], "--top_p must be above 0"),
        (["--num-chunks", "2", "--chunk-idx", "2"], "--chunk-idx 2"),
    ],
)
def test_bad_flags(data, tmp_path, capsys, flags, expected):
    assert expected in refused(capsys, data, tmp_path / "a.jsonl", *flags)


def test_bad_model_path(data, tmp_path, capsys):
    flags = ["--model-path", str(tmp_path / "none")]
    assert str(tmp_path / "none") in refused(capsys, data, tmp_path / "a.jsonl", *flags)


def test_a_broken_question_line_is_named(data, tmp_path, capsys):
    broken = tmp_path / "q.jsonl"
    broken.write_text((data / "questions.jsonl").read_text().splitlines()[0] + "\n{oops\n")
    assert "line 2" in refused(capsys, data, tmp_path / "a.jsonl", "--question-file", str(broken))


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_the_question_file_is_no_answers_file(data, tmp_path, capsys, more):
    questions = tmp_path / "q.jsonl"
    questions.write_bytes(before := (data / "questions.jsonl").read_bytes())
    (tmp_path / "link.jsonl").symlink_to(questions)
    (tmp_path / "hard.jsonl").hardlink_to(questions)
    for answers in (questions, tmp_path / "link.jsonl", tmp_path / "hard.jsonl"):
        message = refused(capsys, data, answers, "--question-file", str(questions), *more)
        assert "the question file are both" in message
    assert questions.read_bytes() == before and [path.name for path in tmp_path.glob(".*")] == []


def test_a_device_or_a_pipe_is_no_answers_file(data, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for answers in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        assert "is no regular file" in refused(capsys, data, answers)


def test_a_full_disk_keeps_whole_answers_and_names_the_file(tmp_path):
    settings, rows = {"a": 1}, [{"n": k, "text": "x" * 100} for k in range(50)]
    path, before = tmp_path / "a.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    said = r"a\.jsonl cannot be written .*what is there stays"
    with AnswersFile(path, settings) as answers, pytest.raises(UserError, match=said):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            for row in rows:
                answers.append(row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[: len(path.read_text().splitlines())]
    with AnswersFile(path, settings) as answers:
        answers.append(rows[-1])
    assert json.loads(path.read_text().splitlines()[-1]) == rows[-1]


def bomb() -> bytes:
    """A PNG header that promises 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("kind", "batch"), [("missing", "1"), ("missing", "4"), ("truncated", "1"), ("bomb", "1"), ("sliver", "4")]
)
def test_a_bad_picture_is_named_and_earlier_answers_stay(data, tmp_path, capsys, kind, batch):
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "2.png"
    if kind == "missing":
        bad.unlink()
    elif kind == "sliver":
        Image.new("RGB", (3, 20000)).save(bad)
    else:
        bad.write_bytes(bomb() if kind == "bomb" else bad.read_bytes()[:60])
    answers = tmp_path / "a.jsonl"
    assert "2.png" in refused(capsys, data, answers, "--image-folder", str(tmp_path), "--batch-size", batch)
    assert len(answers.read_text().splitlines()) == 2
    shutil.copy(data / "2.png", bad)  # mended: the same command goes on
    assert len(run(data, answers, "--image-folder", str(tmp_path), "--batch-size", batch).splitlines()) == QUESTIONS


@pytest.mark.parametrize("batch", ["1", "4"])
def test_a_skipped_question_is_listed_and_asked_again(data, tmp_path, whole, capsys, batch):
    images, answers = shutil.copytree(data, tmp_path / "images"), tmp_path / "a.jsonl"
    good = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(b"no picture")
    own = ("--sparse", "--batch-size", batch, "--image-folder", str(images), "--on-error", "skip")
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            run(data, answers, *own)
        said = capsys.readouterr()
        assert stop.value.code == 1 and "Traceback" not in said.err
        assert "error: 1 of 6 questions failed and have no answer, the first one: question 1: image file" in said.err
        assert "1 failed" in said.out and len(answers.read_text().splitlines()) == QUESTIONS - 1
        (row,) = [json.loads(line) for line in (tmp_path / "a.jsonl.failed").read_text().splitlines()]
        assert row["question_id"] == 1 and "2.png" in row["error"]
    assert "2.png" in refused(capsys, data, answers, *own[:-1], "fail")
    (images / "2.png").write_bytes(good)
    assert sorted(run(data, answers, *own).splitlines()) == sorted(whole.splitlines())
    assert not (tmp_path / "a.jsonl.failed").exists()


SAMPLED = ("--temperature", "1.5", "--top_p", "0.95")


def test_sampled_answers_depend_on_the_question_alone(data, tmp_path):
    together = run(data, tmp_path / "a.jsonl", *SAMPLED, "--batch-size", "4")
    resumed = tmp_path / "b.jsonl"
    run(data, resumed, *SAMPLED)
    assert resumed.read_bytes() == together
    resumed.write_bytes(b"".join(together.splitlines(keepends=True)[:3]))
    assert run(data, resumed, *SAMPLED, "--batch-size", "2") == together


def test_sampling_draws(data, tmp_path):
    texts = {
        json.loads(run(data, tmp_path / f"{seed}.jsonl", *SAMPLED, "--seed", str(seed)).splitlines()[0])["text"]
        for seed in range(3)
    }
    assert len(texts) > 1


def test_gumbel_noise_draws_from_the_softmax():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(4000, 3)
    drawn = GumbelNoise([seed_of(0, k) for k in range(4000)])(torch.zeros(4000, 1, dtype=torch.long), logits).argmax(-1)
    shares = drawn.bincount(minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_beams_do_not_sample(data, tmp_path, capsys):
    assert "--num_beams 1" in refused(capsys, data, tmp_path / "a.jsonl", *SAMPLED, "--num_beams", "2")


def test_another_model_or_question_file_is_not_resumed(data, tmp_path, capsys):
    answers = tmp_path / "a.jsonl"
    before = run(data, answers)
    copy = tmp_path / "ckpt" / "other"
    shutil.copytree(CHECKPOINT, copy)
    shutil.copytree(CHECKPOINT.parent / "openai", tmp_path / "ckpt" / "openai")
    message = refused(capsys, data, answers, "--model-path", str(copy))
    assert f"model: '{CHECKPOINT.name}' there, 'other' now" in message and "sha256" not in message
    same = shutil.move(copy, tmp_path / "ckpt" / CHECKPOINT.name)
    assert run(data, answers, "--model-path", str(same)) == before
    tensors = torch.load(same / "pytorch_model-00002-of-00002.bin")
    torch.save({name: 2 * tensor for name, tensor in tensors.items()}, same / "pytorch_model-00002-of-00002.bin")
    assert "checkpoint_sha256" in refused(capsys, data, answers, "--model-path", str(same))
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((data / "questions.jsonl").read_text().splitlines(keepends=True)[:-1]))
    assert "questions_sha256" in refused(capsys, data, answers, "--question-file", str(fewer))
    images = shutil.copytree(data, tmp_path / "images")
    changed = (images / "0.png").read_bytes()
    (images / "0.png").write_bytes(changed[:-1] + b"!")  # of the same size
    assert "questions_sha256" in refused(capsys, data, answers, "--image-folder", str(images))


def test_questions_without_a_picture_are_batched_apart():
    examples = [Example(k, "?", None if k in (1, 2, 5) else Path("x.png")) for k in range(7)]
    assert list(batches_of(examples, 2)) == [[0], [1, 2], [3, 4], [5], [6]]


def test_text_and_picture_questions_in_one_run(data, tmp_path):
    mixed = [Example(k, f"Which? {k}", data / f"{k}.png" if k % 2 else None, f"asked {k}") for k in range(4)]
    parser = argparse.ArgumentParser()
    add_loop_arguments(parser)
    out = []
    for size in ("1", "4"):
        answers = tmp_path / f"{size}.jsonl"
        loop.run(parser.parse_args(arguments(data, answers, "--sparse", "--batch-size", size)), examples=mixed)
        out.append(answers.read_bytes())
    assert out[0] == out[1]
    assert [json.loads(line)["prompt"] for line in out[0].splitlines()] == [f"asked {k}" for k in range(4)]
