"""`scripts/reproduce.sh`: ours beside the published figures."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dart.utils import write_json
from llava.files import read_json
from scripts import reproduce

ROOT = Path(__file__).resolve().parents[1]
UNPRUNED_ROWS = {"table1": "576", "table2": "2880", "qwen2vl": "none"}
TABLE = {"benchmarks": ["gqa", "mme"], "rows": {"unpruned": [62.0, 1862], "64": [55.9, 1765]}}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CKPT", "DATA"):
        monkeypatch.delenv(name, raising=False)


def test_the_published_figures_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "reproduction.md").read_text()
    for kind in ("table1", "table2", "qwen2vl"):
        for name, values in read_json(reproduce.PUBLISHED)[kind]["rows"].items():
            tokens = UNPRUNED_ROWS[kind] if name == "unpruned" else name
            cells = " | ".join(f"{value:g}" if value >= 100 else f"{value:.1f}" for value in values)
            assert re.search(rf"^\| {tokens} \| {re.escape(cells)} \|", page, re.MULTILINE), (kind, name)


def fake_lmms(scores: dict[str, dict[str, float]], samples: int, asked: list[dict[str, str]]) -> Any:
    """lmms-eval's script without lmms-eval: a report of these metrics, the same for every setting."""

    def run(words: list[str], cwd: Path, env: dict[str, str]) -> SimpleNamespace:
        asked.append({"words": " ".join(words[2:]), **{key: env[key] for key in ("MODEL", "TASKS", "PYTHON")}})
        setting = "unpruned" if words[2] == "False" else f"dart-{words[3]}"
        folder = Path(env["OUTPUT"]) / Path(env["MODEL"]).name / setting / "model"
        results = {
            task: {"alias": task, **{f"{name},none": value for name, value in values.items()}}
            for task, values in scores.items()
        }
        counts = {task: {"original": samples, "effective": samples} for task in scores}
        write_json(folder / "20260101_000000_results.json", {"results": results, "n-samples": counts})
        return SimpleNamespace(returncode=0)

    return run


LMMS = {
    "gqa": {"exact_match": 0.602},
    "mmbench_en_dev": {"gpt_eval_score": 78.9},
    "mmbench_cn_dev": {"gpt_eval_score": 78.0},
    "mme": {"mme_perception_score": 1600.0, "mme_cognition_score": 645.0},
    "pope": {"pope_accuracy": 0.9, "pope_f1_score": 0.839},
    "scienceqa_img": {"exact_match": 0.814},
    "textvqa_val": {"exact_match": 0.5},
}


def test_qwen2vl_reads_the_reports_of_lmms_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The published figures at 66.7 % fewer tokens, but for TextVQA's."""
    asked: list[dict[str, str]] = []
    monkeypatch.setenv("CKPT", "Qwen/Qwen2-VL-7B-Instruct")
    monkeypatch.setattr(reproduce, "missing", lambda *_: [])
    monkeypatch.setattr(reproduce.subprocess, "run", fake_lmms(LMMS, 1000, asked))
    monkeypatch.setattr(reproduce, "provenance", dict)
    reproduce.main(["qwen2vl", "--out", str(tmp_path / "out.json")])
    rows = {(row["tokens"], row["benchmark"]): row for row in read_json(tmp_path / "out.json")["rows"]}
    assert len(rows) == 4 * 7
    assert {name: rows["0.667", name]["difference"] for name in LMMS} == dict.fromkeys(LMMS, 0) | {"textvqa_val": -30.5}
    assert rows["0.667", "gqa"]["within"] and not rows["0.667", "textvqa_val"]["within"]
    assert rows["unpruned", "mme"]["difference"] == 2245 - 2317 and "low" not in rows["unpruned", "mme"]
    assert [each["words"] for each in asked] == ["False", "True 0.667", "True 0.778", "True 0.889"]
    assert asked[0]["TASKS"] == ",".join(LMMS) and asked[0]["PYTHON"].endswith(".venv-lmms/bin/python")
    assert "| 0.667 | textvqa_val | 80.5 | 50.0 | -30.5 | 46.9 to 53.1 | no |" in capsys.readouterr().out
    reproduce.main(["qwen2vl", "--out", str(tmp_path / "out.json")])
    assert len(asked) == 4, "what is finished is not run again"


def test_a_figure_that_lmms_eval_lacks_is_said_and_ends_with_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The embedded run: its model, its tasks."""
    mini = {"mme_mini": {"mme_perception_score": 800.0}, "pope_mini": {"pope_f1_score": 0.9}, "textvqa_mini": {}}
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(reproduce, "missing", lambda *_: [])
    monkeypatch.setattr(reproduce.subprocess, "run", fake_lmms(mini, 60, asked))
    monkeypatch.setattr(reproduce, "provenance", dict)
    with pytest.raises(SystemExit, match="1"):
        reproduce.main(["qwen2vl", "--out", str(tmp_path / "out.json")])
    assert asked[0]["MODEL"].endswith("qwen2-vl-tiny") and asked[0]["TASKS"] == ",".join(mini)
    told = capsys.readouterr()
    assert "4 of 12 figures are missing: textvqa_val at unpruned" in told.err
    assert "not run: lmms-eval's report has no exact_match of textvqa_mini" in told.out
    assert read_json(tmp_path / "out.json")["checkpoint"] == "qwen2-vl-tiny"


def test_lmms_eval_without_a_judge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = reproduce.missing("qwen2vl", "Qwen/Qwen2-VL-7B-Instruct", ROOT, [], True)
    assert not any("OPENAI" in line for line in found)
    monkeypatch.setattr(reproduce.AutoConfig, "from_pretrained", lambda *_: None)
    found = reproduce.missing("qwen2vl", "Qwen/Qwen2-VL-7B-Instruct", ROOT, [], False)
    assert any(line.startswith("OPENAI_API_KEY: ") for line in found)


def test_a_figure_beside_the_published_one() -> None:
    cells = {
        "gqa/unpruned": {"score": 62.5, "samples": 1000},
        "gqa/64": {"score": 50.0, "samples": 400},
        "mme/64": {"score": 1700.0, "samples": 2374},
        "mme/unpruned": {"error": "no images"},
    }
    rows = {(row["tokens"], row["benchmark"]): row for row in reproduce.compared(TABLE, cells)}
    assert rows["unpruned", "gqa"]["difference"] == 0.5 and rows["unpruned", "gqa"]["within"]
    # 50 % of 400: 45.1 to 54.9
    assert (rows["64", "gqa"]["low"], rows["64", "gqa"]["high"]) == (45.1, 54.9) and not rows["64", "gqa"]["within"]
    assert rows["64", "mme"]["difference"] == -65 and "low" not in rows["64", "mme"]  # points, no share
    text = reproduce.text_of(list(rows.values()))
    assert "| 64 | gqa | 55.9 | 50.0 | -5.9 | 45.1 to 54.9 | no |" in text and "not run: no images" in text


@pytest.mark.parametrize("kind", reproduce.KINDS)
def test_a_dry_run_says_what_would_run(kind: str, capsys: pytest.CaptureFixture) -> None:
    reproduce.main([kind, "--dry-run"])
    printed = capsys.readouterr().out
    assert "CKPT is not set" in printed and f"would run: {kind}" in printed


def test_all_that_is_missing_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CKPT", str(tmp_path / "nothing"))
    monkeypatch.setenv("DATA", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["table1", "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr()
    assert ended.value.code == 2 and "nothing was run" in printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("missing: ")]
    assert all(any(f" {name}:" in line for line in lines) for name in ("gqa", "pope", "textvqa"))
    assert any("checkpoint" in line for line in lines) and not list(tmp_path.iterdir())


def test_a_benchmark_that_could_not_run_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The suite ends with code 1 then; with code 2 nothing is compared."""
    code = 1

    def run(words: list[str]) -> None:
        cells = {"textvqa/dart-original-64": {"score": 54.0, "samples": 100}, "pope/unpruned": {"error": "no images"}}
        write_json(Path(words[words.index("--out") + 1]), {"cells": cells})
        raise SystemExit(code)

    monkeypatch.setattr(reproduce.suite, "main", run)
    monkeypatch.setattr(reproduce, "provenance", dict)
    with pytest.raises(SystemExit, match="1"):
        reproduce.main(["table1", "--out", str(tmp_path / "out.json")])
    told = capsys.readouterr()
    assert "| 64 | textvqa | 54.4 | 54.0 | -0.4 |" in told.out and "1 of 2 figures are missing: pope at" in told.err
    (tmp_path / "out.json").unlink()
    code = 2
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(["table1", "--out", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_the_embedded_model_runs_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(reproduce.EMBEDDED, "benchmarks", ["textvqa"])
    whole = reproduce.suite.main
    monkeypatch.setattr(reproduce.suite, "main", lambda words: whole([*words, "--num-chunks", "8"]))
    table = reproduce.read_json(reproduce.PUBLISHED)
    table["table1"]["rows"] = {"64": table["table1"]["rows"]["64"]}
    monkeypatch.setattr(reproduce, "read_json", lambda path: table if path == reproduce.PUBLISHED else read_json(path))
    reproduce.main(["table1", "--out", str(tmp_path / "out.json")])
    (row,) = read_json(tmp_path / "out.json")["rows"]
    assert row["benchmark"] == "textvqa" and row["ours"] > 85 and row["published"] == 54.4
    assert str(tmp_path) not in (tmp_path / "out.json").read_text().split('"command"')[0]
    assert "| 64 | textvqa |" in capsys.readouterr().out
