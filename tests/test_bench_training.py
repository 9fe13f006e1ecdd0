"""`python -m benchmarks.training`: four ways of learning beside each other."""

from __future__ import annotations

import json

import pytest

from benchmarks import training
from dart.utils import UserError
from dev.results import speed

QUICK = ["--model", "tiny", "--keep", "16", "--steps", "3", "--repeats", "2", "--device", "cpu"]


def test_four_ways_in_one_run(tmp_path, capsys, monkeypatch):
    seen = []

    def here(way, args):
        found = training.train(way, args)
        seen.append((way, found))
        return found

    monkeypatch.setattr(training, "alone", here)  # a process each costs seconds
    out = tmp_path / "training-speed-tiny.json"
    training.main([*QUICK, "--out", str(out)])
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert [way for way, _ in seen] == [*training.WAYS, *reversed(training.WAYS)]
    assert all(len(found["seconds"]) == 3 and min(found["seconds"]) > 0 for _, found in seen)
    assert [row["way"] for row in result["rows"]] == list(training.WAYS)
    assert result["rows"][0]["times_faster"] == {"median": 1.0, "iqr": 0.0}
    assert result["visual_tokens"] == 256 and result["tokens"] == 326
    page = speed.page_with_results(
        "training.md", "<!-- results:training-speed -->\n<!-- /results:training-speed -->", tmp_path
    )
    assert "| plain | " in page and "`dart` keeps 16." in page


def test_a_process_that_dies_is_named():
    args = training.parser_().parse_args(QUICK)
    args.threads, args.model = 1, "none"
    with pytest.raises(UserError, match="plain: the process ended with code 1"):
        training.alone("plain", args)
