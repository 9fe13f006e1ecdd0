"""`scripts/reproduce.sh`: ours beside the published figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava.files import read_json
from scripts import reproduce

ROOT = Path(__file__).resolve().parents[1]
TABLE = {"benchmarks": ["gqa", "mme"], "rows": {"unpruned": [62.0, 1862], "64": [55.9, 1765]}}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CKPT", "DATA"):
        monkeypatch.delenv(name, raising=False)


def test_the_published_figures_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "reproduction.md").read_text()
    for kind in ("table1", "table2"):
        for name, values in read_json(reproduce.PUBLISHED)[kind]["rows"].items():
            tokens = {"unpruned": "576" if kind == "table1" else "2880"}.get(name, name)
            cells = " | ".join(f"{value:g}" if value >= 100 else f"{value:.1f}" for value in values)
            assert re.search(rf"^\| {tokens} \| {re.escape(cells)} \|", page, re.MULTILINE), (kind, name)


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
