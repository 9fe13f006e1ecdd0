"""`python -m benchmarks.methods`: all methods at equal budgets, beside the unpruned model; it resumes."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest
import torch

import dart
from benchmarks import methods, methods_report
from benchmarks.shapes import SHAPES, build, workload
from dart.engine import forward
from dev.results import speed

QUICK = ["--models", "tiny", "--layer", "1", "--repeats", "1", "--warm-up", "0", "--dtype", "float32"]


def test_every_method_in_one_run(tmp_path, capsys):
    out, plot = tmp_path / "methods-tiny.json", tmp_path / "methods-tiny.png"
    methods.main([*QUICK, "--out", str(out), "--plot", str(plot)])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert json.loads(printed.strip().splitlines()[-1]) == result
    part, accuracy = result["shapes"]["tiny"], result["accuracy"]
    rows = {row["method"]: row for row in part["rows"]}
    assert sorted(rows) == dart.strategies.available()
    assert {name for name, row in rows.items() if "error" in row} == {"downsample", "evs"}
    assert part["keep"] == round(256 * accuracy["keep"] / 576) == 91
    for name, row in rows.items():
        if "error" not in row:
            assert abs(row["mean_tokens"] - part["keep"]) <= 2, name  # several stages cannot meet every mean
            assert 0 < row["ms"]["selector"]["median"] < row["ms"]["ttft"]["median"], name
    slow = {**rows["dart"], "unpruned_ms": {"vision": {"median": 9e9}, "ttft": {"median": 9e9}}}
    disturbed = {**part, "rows": [slow if row is rows["dart"] else row for row in part["rows"]]}
    speeds = [methods_report.times_faster(each, rows["dart"]) for each in (part, disturbed)]
    base = statistics.median(row["unpruned_ms"]["ttft"]["median"] for row in rows.values() if "error" not in row)
    assert speeds[0] == pytest.approx(base / rows["dart"]["ms"]["ttft"]["median"])
    assert speeds[1] < 2 * speeds[0]  # one slow round of the unpruned model is no speed-up of the method beside it
    compared = json.loads(methods.ACCURACY.read_text())["averages"]
    wanted = next(row["relative"] for row in compared if (row["method"], row["budget"]) == ("spread", 204))
    assert accuracy["relative"]["spread"] == round(wanted, 2) and "downsample" not in accuracy["relative"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    page = speed.page_with_results("performance.md", MARKERS, tmp_path)
    assert f"| spread | {wanted:.1f} | " in page and "| unpruned | 100.0 | 256.0 | 0.0 | " in page
    assert "- evs: strategy 'evs' compares the frames" in page


MARKERS = "".join(f"<!-- results:{part} -->\n<!-- /results:{part} -->\n" for part in speed.PAGES["performance.md"])


def test_going_on_measures_what_is_missing(tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "m.json")]
    methods.main([*QUICK, *out, "--methods", "uniform"])
    first = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["shapes"]["tiny"]["rows"]
    methods.main([*QUICK, *out, "--methods", "uniform,dart"])
    second = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["shapes"]["tiny"]["rows"]
    assert second[:1] == first and [row["method"] for row in second] == ["uniform", "dart"]
    monkeypatch.setattr(methods, "build", lambda *_: pytest.fail("a model was built"))
    methods.main([*QUICK, *out, "--methods", "dart"])
    with pytest.raises(SystemExit, match="2"):
        methods.main([*QUICK, *out, "--keep", "0.5"])
    assert "has tiny with share 0.3542, this run has 0.5: choose another --out" in capsys.readouterr().err


def test_an_interrupted_run_keeps_its_groups(tmp_path, monkeypatch):
    out, plain, calls = tmp_path / "m.json", methods.measure, []

    def second_fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(methods, "measure", second_fails)
    with pytest.raises(KeyboardInterrupt):
        methods.run(
            methods.parser_().parse_args([*QUICK, "--methods", "dart,uniform", "--beside", "1", "--out", str(out)])
        )
    assert [row["method"] for row in json.loads(out.read_text())["shapes"]["tiny"]["rows"]] == ["dart"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "llava-8b"], "--models must be of llava-1.5-7b, "),
        (["--methods", "drat"], "--methods must be of cdpruner, "),
        (["--keep", "64"], "--keep must be a share of the visual tokens between 0 and 1, got 64"),
        (["--warm-up", "-1"], "expected a number of 0 or more, got '-1'"),
        (["--accuracy", "no-such-file.json"], "no-such-file.json"),
        (["--plot", "x.svg"], "--plot must name a .png file, got x.svg"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        methods.main(arguments)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_views_that_ask_for_the_same_attention_row_share_it(monkeypatch):
    """A layer's projections of all tokens run once a stage, not once for each view."""
    shape = replace(SHAPES["tiny"], between=1)
    work = workload(shape, build(shape, torch.device("cpu"), torch.float32, "sdpa"), 1)
    calls, plain = [], forward.attention_rows
    monkeypatch.setattr(forward, "attention_rows", lambda *given: calls.append(1) or plain(*given))
    with torch.inference_mode(), dart.prune(work.model, dart.DartConfig(keep=32, strategy="pyramiddrop")) as handle:
        work.model(**work.inputs)
    assert len(handle.last.stages) == len(calls) == 3 and shape.images == 4
