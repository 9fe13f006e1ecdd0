"""Names that would break a table, hub revisions, full disks and read-only folders, failures in several processes."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import latency
from dart import utils
from dart.compare import data, tables
from dart.compare.data import Sample
from dart.compare.plots import title_of
from dart.utils import Unfinished, UserError, checkpoint_folder, exits_cleanly, write_json
from llava import dart_data
from llava.eval import model_vqa_loader, suite
from llava.eval.probe import validate
from llava.files import EMBEDDED_MODEL
from llava.train import train
from scripts import convert_llava_to_hf

BAD_NAME = "a|b<script>`c`\n=d$\\"


def results(name: str) -> dict[str, Any]:
    cell = {"data": name, "method": name, "budget": None, "score": 0.5, "low": 0.4, "high": 0.6}
    refused = {"data": name, "method": name, "budget": 8, "reason": name}
    return {
        "data": [{"name": name, "samples": 1, "of": 1, "note": name}],
        "budgets": [8],
        "budget_kind": "pre-llm",
        "baseline": name,
        "layer": 2,
        "methods": {name: {"question_aware": False}},
        "cells": [cell, refused],
        "averages": [
            {"method": name, "budget": None, "relative": 100.0},
            {"method": name, "budget": 8, "relative": None},
        ],
        **dict.fromkeys(("dtype", "attention", "commit", "date"), "x"),
        **dict.fromkeys(("hardware", "model_name", "command"), name),
    }


def test_a_name_breaks_no_markdown():
    lines = tables.to_markdown(results(BAD_NAME)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1  # as many cells in each
    assert len(rows) == 5 and len(lines) == 5 + 1 + 5 + 1  # rows, notes, what was not run: a line each
    assert all("<script" not in line.replace("\\<", "") for line in lines[:-2])
    assert lines[-2].endswith("`` a|b<script>`c` =d$\\ ``")  # code, in which nothing is markup
    assert tables.code("plain") == "`plain`"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_name_is_no_formula(name):
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(results(name)), newline="")))
    assert {row["data"] for row in rows} == {f"'{name.strip()}"} and rows[0]["score"] == "0.5"
    assert len(list(csv.reader(io.StringIO(tables.to_csv(results(BAD_NAME)), newline="")))) == 3


def test_a_dollar_in_a_title_begins_no_formula():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set(title=title_of("$\\nonesuch{$", []))
    with pytest.raises(ValueError):
        other = Figure()
        other.subplots().set(title="$\\nonesuch{$")
        other.savefig(io.BytesIO())
    figure.savefig(io.BytesIO())


def test_a_revision_is_pinned_and_a_folder_has_none(tmp_path, monkeypatch):
    asked = []

    def snapshot(path: str, revision: str | None = None, **_: Any) -> str:
        asked.append((path, revision))
        if revision == "none":
            raise OSError("404")
        return str(tmp_path / str(revision))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert checkpoint_folder("owner/name", "abc") == str(tmp_path / "abc")
    assert asked == [("owner/name", "abc")]
    with pytest.raises(FileNotFoundError, match=r"owner/name \(revision none\)"):
        checkpoint_folder("owner/name", "none")
    with pytest.raises(UserError, match="--revision abc is for a hub name"):
        checkpoint_folder(str(tmp_path), "abc")


def test_answers_of_another_revision_are_not_resumed(tmp_path, monkeypatch, capsys):
    """The same weights under another revision: what else is in it (a tokenizer) may differ."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda path, **_: str(EMBEDDED_MODEL))
    argv = questions(tmp_path, 1)
    argv[argv.index(str(EMBEDDED_MODEL))] = "owner/llava-tiny"
    model_vqa_loader.main([*argv, "--revision", "v1"])
    with pytest.raises(SystemExit) as stop:
        model_vqa_loader.main([*argv, "--revision", "v2"])
    assert stop.value.code == 2 and "revision: 'v1' there, 'v2' now" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What is asked of the hub, which has nothing."""
    found = []

    def snapshot(path: str, revision: str | None = None, **_: Any) -> str:
        found.append((path, revision))
        raise OSError("404")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return found


def test_every_command_that_takes_a_hub_name_takes_its_revision(tmp_path, asked, capsys):
    one, questions_ = ["--revision", "v1"], questions(tmp_path, 1)
    base = ["--model-base", "owner/name", "--model-base-revision", "v1"]
    for main, words in (
        (model_vqa_loader.main, [*questions_, *base]),
        (train.main, ["--model_name_or_path", "owner/name", *one, "--data_path", "x.json", "--output_dir", "o"]),
        (latency.main, ["--checkpoint", "owner/name", *one]),
        (validate.main, ["--ckpt", "owner/name", *one, "--data", str(tmp_path / "sets")]),
        (convert_llava_to_hf.main, ["--model-path", "owner/name", *one, "--output", str(tmp_path / "hf")]),
        (suite.main, ["--ckpt", "owner/name", *one, "--out", str(tmp_path / "suite.json")]),
    ):
        asked.clear()
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert asked == [("owner/name", "v1")], main.__module__
        assert "owner/name (revision v1) does not exist here" in capsys.readouterr().err


def test_a_revision_of_nothing_is_refused(tmp_path, asked, capsys):
    for main, words, flag in (
        (model_vqa_loader.main, [*questions(tmp_path, 1), "--model-base-revision", "v1"], "--model-base-revision"),
        (latency.main, ["--model", "tiny", "--revision", "v1"], "--revision"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert capsys.readouterr().err.startswith(f"error: {flag} is for ") and asked == []


def questions(folder: Path, count: int) -> list[str]:
    """Arguments for so many questions about pictures in `folder`."""
    rows = []
    for number in range(count):
        Image.new("RGB", (28, 28), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append({"question_id": number, "image": f"{number}.png", "text": f"What {number}?"})
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = ["--question-file", str(folder / "q.jsonl"), "--image-folder", str(folder)]
    more = ["--answers-file", str(folder / "a.jsonl"), "--num-workers", "0", "--max_new_tokens", "2"]
    return ["--model-path", str(EMBEDDED_MODEL), *paths, *more]


def test_failures_of_several_processes_are_counted_together(tmp_path, monkeypatch, capsys):
    """Each process lists its own; the last one ends with exit code 1; mended, one process answers the rest."""
    argv = questions(tmp_path, 4)
    good = {k: (tmp_path / f"{k}.png").read_bytes() for k in (0, 1)}
    for number in good:
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    monkeypatch.setenv("WORLD_SIZE", "2")
    codes: list[Any] = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        try:
            model_vqa_loader.main([*argv, "--on-error", "skip"])
            codes.append(0)
        except SystemExit as stop:
            codes.append(stop.code)
    assert codes == [0, 1]
    assert "2 of 4 questions failed" in capsys.readouterr().err
    for number, content in good.items():
        (tmp_path / f"{number}.png").write_bytes(content)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with contextlib.suppress(SystemExit) if rank == "0" else contextlib.nullcontext():
            model_vqa_loader.main([*argv, "--on-error", "skip"])  # the first cannot know that the other will ask, too
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [0, 1, 2, 3]
    assert not list(tmp_path.glob("a.jsonl.part*")) and not list(tmp_path.glob("*.failed"))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    write_json(path, {"old": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit) as stop:
        exits_cleanly(lambda: write_json(path, {"new": 2}))()
    line = capsys.readouterr().err
    assert stop.value.code == 2 and str(path) in line and "No space left" in line and line.count("\n") == 1
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", ["answers", "compare", "dart"])
def test_a_folder_that_cannot_be_written_is_one_line(command, tmp_path, monkeypatch, capsys):
    """A folder below a file stands for a read-only one: those who run tests as root may write everywhere."""
    from dart.cli import main as dart_main
    from dart.compare.command import main as compare_main

    argv, place = questions(tmp_path, 1), tmp_path / "q.jsonl" / "out"
    qwen = ["--model", str(EMBEDDED_MODEL.parent / "qwen2-vl-tiny")]
    argv[argv.index(str(tmp_path / "a.jsonl"))] = str(place)
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "?", "answer": "A", "image": "0.png"}))
    run, words = {
        "answers": (model_vqa_loader.main, argv),
        "compare": (compare_main, [*qwen, "--data", str(tmp_path / "own.jsonl"), "--out", str(place)]),
        "dart": (dart_main, [*qwen, "--image", str(tmp_path / "0.png"), "--question", "?", "--json", str(place)]),
    }[command]
    with pytest.raises(SystemExit) as stop:
        run(words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and str(place.parent) in lines[0]


def test_an_image_in_a_table_is_checked_as_one_in_a_file(tmp_path):
    for size, words in (((1, 400), "1 x 400 pixels"), ((4, 4), None)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        sample = Sample("s", "?", [file.getvalue()], [], [])
        if words is None:
            assert sample.pictures()[0].size == size
        else:
            with pytest.raises(UserError, match=f"sample s: its image .*{words}"):
                sample.pictures()
    with pytest.raises(UserError, match="sample s: its image cannot be read"):
        Sample("s", "?", [b"no picture"], [], []).pictures()


def test_another_picture_of_the_same_name_and_size_is_another_data_set(tmp_path):
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "?", "answer": "A", "image": "a.bmp"}))
    digests = set()
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "a.bmp")
        digests.add(data.own_data(tmp_path / "own.jsonl").digest())
    assert len(digests) == 2


def test_samples_of_a_file_of_another_form_are_one_line(monkeypatch):
    benchmark = dart_data.Benchmark("vizwiz", None)
    monkeypatch.setattr("llava.eval.tasks.vizwiz.read_json", lambda path: [{}])
    texts = dict.fromkeys(benchmark.examples, "A")
    for ask in (benchmark.counted, benchmark.grade, benchmark.official):
        with pytest.raises(UserError, match="has not the official form"):
            ask(texts)


def test_half_a_character_is_refused_where_it_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": "\\ud83d\\ude00"}')  # both halves
    assert utils.read_json(path) == {"a": "\U0001f600"}
    path.write_text('{"a": "\\ud83d"}')
    with pytest.raises(ValueError, match=r"a\.json has half a character"):
        utils.read_json(path)
    assert issubclass(Unfinished, UserError)
