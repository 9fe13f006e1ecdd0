"""The table of benchmarks, strategies and budgets."""

import json
import os
from pathlib import Path

import pytest
from conftest import first_questions

from dart import utils
from dart.utils import UserError
from llava.eval import suite, tasks
from llava.eval.engine import loop, runner, suite_table
from llava.eval.suite import Setting, settings_of
from llava.files import EMBEDDED_DATA, fingerprint

MINI = EMBEDDED_DATA
CHECKPOINT = Path(__file__).parent / "golden" / "ckpt" / "llava-v1.5-tiny"
QUESTIONS = 3
# The paper's Table 1 (LLaVA-1.5-7B): unpruned, then 192, 128 and 64 tokens with their published averages.
PAPER = {
    "unpruned": (61.9, 64.7, 58.1, 1862, 85.9, 69.5, 78.5, 58.2, 50.0, 297),
    "192": (60.0, 63.6, 57.0, 1856, 82.8, 69.8, 76.7, 57.4, 51.2, 296),
    "128": (58.7, 63.2, 57.5, 1840, 80.1, 69.1, 75.9, 56.4, 51.7, 296),
    "64": (55.9, 60.6, 53.2, 1765, 73.9, 69.8, 72.4, 54.4, 51.6, 270),
}
PAPER_AVERAGES = {"192": 98.8, "128": 98.0, "64": 93.7}


@pytest.mark.parametrize("row", PAPER_AVERAGES)
def test_the_average_is_the_papers(row):
    benchmarks = [str(k) for k in range(len(PAPER["unpruned"]))]
    scores = {name: {b: [float(v)] for b, v in zip(benchmarks, values, strict=True)} for name, values in PAPER.items()}
    average = suite_table.relative_average(scores[row], scores["unpruned"], benchmarks)
    assert average == pytest.approx(PAPER_AVERAGES[row], abs=0.06)


def test_the_average_needs_every_benchmark():
    assert suite_table.relative_average({"a": [1.0]}, {"a": [2.0], "b": [2.0]}, ["a", "b"]) is None
    assert suite_table.relative_average({"a": [1.0]}, {"a": [0.0]}, ["a"]) is None


def test_settings_cover_orders_seeds_and_controls():
    names = [s.name for s in settings_of(["dart", "random", "uniform"], [64], ["original", "norm"], [0, 1], True)]
    controls = ["random-64-seed0", "random-64-seed1", "uniform-64"]
    assert names == ["unpruned", "blind", "dart-original-64", "dart-norm-64", *controls]


def results_with(cells: dict) -> dict:
    settings = [Setting("unpruned"), *(Setting(f"random-64-seed{k}", "random", 64, seed=k) for k in (0, 1))]
    origin = {"checkpoint_sha256": "0" * 64, "commit": "c", "date": "d", "hardware": "h<w"}
    return {"settings": [vars(s) for s in settings], "cells": cells, **origin}


def test_seeds_are_one_row_and_what_failed_is_named():
    cells = {"pope/unpruned": {"score": 80.0}, "gqa/unpruned": {"error": "no such folder"}}
    cells |= {
        f"pope/random-64-seed{k}": {"score": s, "tokens": [576, 68], "mean_tokens": 82.1}
        for k, s in ((0, 70.0), (1, 74.0))
    }
    text = suite_table.to_markdown(results_with(cells))
    assert "| random-64 | 72.0 ±2.0 | - | 90.0 % |" in text
    assert "keep 64: 576 -> 68 tokens, 82 as a mean over layers" in text
    assert "GQA has no score: no such folder" in text
    assert "h&lt;w" in suite_table.to_html(results_with(cells))


def test_a_name_with_a_bar_stays_in_its_cell():
    assert suite_table.markdown(["a|b"], [["c\nd|"]]) == ["| a\\|b |", "| --- |", "| c d\\| |"]


def test_checkpoints_differ_by_content_not_by_name(tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    a, b, c = (fingerprint(str(tmp_path / name)) for name in "abc")
    assert a == b != c


def test_weights_that_changed_within_a_file_are_another_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "BLOCK_BYTES", 4)
    weights, told = bytearray(1000), set()
    for place in (None, 496, 503, 999):
        if place is not None:
            weights[place] = 1
        (tmp_path / "model.safetensors").write_bytes(weights)
        told.add(fingerprint(tmp_path))
    assert len(told) == 4


def test_a_large_checkpoint_is_hashed_once_for_its_sizes_and_times(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "LARGE_BYTES", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, made = tmp_path / "ckpt" / "model.safetensors", []
    weights.parent.mkdir()
    digest_of = utils._digest
    monkeypatch.setattr(utils, "_digest", lambda *given: made.append(digest_of(*given)) or made[-1])
    told = []
    for content, seconds in ((b"one one", 1), (b"one one", 1), (b"two two", 2)):
        weights.write_bytes(content)
        os.utime(weights, (seconds, seconds))
        told.append(fingerprint(weights.parent))
    assert told[0] == told[1] != told[2] and len(made) == 2
    os.utime(weights)  # now: it may change again within this time
    fingerprint(weights.parent), fingerprint(weights.parent)
    assert len(made) == 4


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return first_questions(tmp_path_factory.mktemp("data"), QUESTIONS)


def run_suite(data: Path, out: Path, *flags: str) -> dict:
    """The results of a run that leaves gqa out, which is not there."""
    own = ["--data", str(data), "--out", str(out), "--keep", "64", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        suite.main([*own, "--strategies", "uniform", "--benchmarks", "textvqa,gqa", *flags])
    if ended.value.code != 1:
        raise ended.value
    return json.loads(out.read_text())


def test_runs_what_is_missing_and_says_what_cannot_run(data, tmp_path, capsys):
    out = tmp_path / "table.json"
    first = run_suite(data, out)
    cells = first["cells"]
    assert {"textvqa/unpruned", "textvqa/uniform-64"} <= {k for k, f in cells.items() if "score" in f}
    assert cells["textvqa/uniform-64"]["tokens"] == [576, 68]
    assert "gqa" in cells["gqa/unpruned"]["error"]
    assert "| uniform-64 |" in out.with_suffix(".md").read_text()
    assert "uniform-64" in out.with_suffix(".html").read_text()
    capsys.readouterr()
    assert run_suite(data, out)["cells"] == cells
    printed, error = capsys.readouterr()
    assert json.loads(printed.splitlines()[-1])["not_run"] == 2
    assert error.startswith("error: 2 of 4 runs have no score (gqa): the table says why")
    assert "--- gqa/unpruned" in printed, "what failed is tried again"
    assert "--- textvqa/" not in printed, "what is finished is not run again"


def test_tasks_decide_their_prompts_unless_a_flag_does(tmp_path, monkeypatch):
    asked = []
    task = tasks.get("qbench")
    monkeypatch.setattr(runner, "load", lambda args: None)
    monkeypatch.setattr(
        runner, "run", lambda args, *_: asked.append((args.conv_mode, args.max_new_tokens)) or loop.Outcome(True, None)
    )
    monkeypatch.setattr(suite, "read_lines", lambda path: [])
    monkeypatch.setattr(type(task), "figures", lambda *_: (_ for _ in ()).throw(UserError("stop")))
    for flags in ([], ["--conv-mode", "vicuna_v1", "--max_new_tokens", "5"]):
        own = ["--benchmarks", "qbench", "--strategies", "dart", "--keep", "64", "--overwrite"]
        with pytest.raises(SystemExit, match="1"):
            suite.main([*own, "--out", str(tmp_path / "table.json"), *flags])
    assert asked == [("llava_v1", 1024)] * 2 + [("vicuna_v1", 5)] * 2


def test_a_judged_benchmark_without_a_judge_is_a_row_that_says_why(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "table.json"
    own = ["--ckpt", str(CHECKPOINT), "--out", str(out), "--strategies", "dart", "--keep", "64", "--device", "cpu"]
    with pytest.raises(SystemExit, match="1"):
        suite.main([*own, "--benchmarks", "mmvet", "--max_new_tokens", "1", "--batch-size", "16"])
    cells = json.loads(out.read_text())["cells"]
    assert all(
        "the judge is needed now" in cells[f"mmvet/{name}"]["error"] for name in ("unpruned", "dart-original-64")
    )
    table = out.with_suffix(".md").read_text()
    assert (
        "MM-Vet has no score: the judge is needed now: set OPENAI_API_KEY" in table and "| unpruned | - | - |" in table
    )
    assert len(list(tmp_path.glob("table-answers/*/mmvet/*.jsonl"))) == 2, "the answers are kept for the judge"


def test_every_benchmark_has_a_title():
    assert set(tasks.TASKS) == set(suite_table.TITLES)


def test_results_of_another_checkpoint_are_refused(data, tmp_path, capsys):
    out = tmp_path / "table.json"
    before = json.dumps({"checkpoint_sha256": "0", "settings": [], "cells": {}})
    out.write_text(before)
    with pytest.raises(SystemExit) as stop:
        run_suite(data, out)
    assert stop.value.code == 2
    assert "another checkpoint" in capsys.readouterr().err
    assert out.read_text() == before


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--strategies", "dartt", "unknown strategy 'dartt' (did you mean dart?)"),
        ("--benchmarks", "textvka", "unknown benchmark 'textvka'"),
        ("--keep", "12,x", "whole numbers"),
        ("--keep", ",", "names with commas"),
        ("--benchmarks", ",", "names with commas"),
        ("--strategies", "", "names with commas"),
        ("--pivot-orders", "foo", "--pivot-orders: unknown foo; known: norm, original"),
        ("--seeds", "0", "a number from 1"),
        ("--out", str(CHECKPOINT), "is no regular file"),
        ("--temperature", "nan", "temperature"),
        ("--batch-size", "0", "--batch-size must be 1 or more"),
        ("--conv-mode", "nonesuch", "nonesuch"),
    ],
)
def test_bad_words_are_named(flag, value, said, capsys):
    with pytest.raises(SystemExit) as stop:
        suite.main([flag, value])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
