"""docs/performance.md and docs/kernels.md: their tables are those of the recorded runs, their figures the formulas'."""

from __future__ import annotations

import json

import pytest

from benchmarks import latency, scaling
from dev.results import speed
from dev.results.render import RESULTS_FOLDER

PAGE = "performance.md"
MARKERS = "".join(f"<!-- results:{part} -->\nSTALE\n<!-- /results:{part} -->\n" for part in speed.PAGES[PAGE])


@pytest.mark.parametrize("page", speed.PAGES)
def test_the_page_is_up_to_date(page):
    text = (speed.DOCS / page).read_text()
    assert speed.page_with_results(page, text, RESULTS_FOLDER) == text


def test_recorded_runs_become_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "WIDTH", 64)
    chart = tmp_path / "latency-tiny.png"
    out = ["--out", str(tmp_path / "latency-tiny.json"), "--plot", str(chart)]
    latency.main(["--keep", "32", "--repeats", "1", "--warm-up", "1", "--answer-tokens", "2", *out])
    out = ["--out", str(tmp_path / "selection-scaling-cpu.json")]
    scaling.main(["--tokens", "256,512", "--repeats", "1", *out])
    text = speed.page_with_results(PAGE, MARKERS, tmp_path)
    result = json.loads((tmp_path / "latency-tiny.json").read_text())
    row = next(line for line in text.splitlines() if line.startswith("| dart 32 | 36 |"))
    assert f" {result['rows'][1]['times_faster']['prefill']['median']:.2f} | 1.60 |" in row
    assert "STALE" not in text and "![latency-tiny](results/latency-tiny.png)" in text
    assert text.count("Command: `") == 2 and "| 512 |" in text
    assert speed.page_with_results(PAGE, text, tmp_path) == text


def test_without_runs_or_markers(tmp_path):
    assert speed.page_with_results(PAGE, MARKERS, tmp_path).count(speed.NONE_YET) == len(speed.PAGES[PAGE])
    with pytest.raises(ValueError, match="no markers"):
        speed.page_with_results(PAGE, "text", tmp_path)
