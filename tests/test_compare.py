"""`python -m dart.compare`: statistics against hand-worked values, data sets, whole runs on a tiny model."""

from __future__ import annotations

import csv
import html
import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_checkpoints
import torch
from PIL import Image
from tqdm import tqdm

from dart import strategies, utils
from dart.cli import loading
from dart.cli.loading import load
from dart.compare import data, run
from dart.compare.command import main
from dart.compare.data import DataSet, Sample, equals_one, normalised, open_data, own_data
from dart.compare.plan import Rules, Setting, methods_of, settings_of
from dart.compare.plots import front
from dart.compare.summary import Summary, averages
from dart.engine.tower import SharedVision
from dart.stats import bootstrap, interval, relative_average, wilson, wins_and_losses
from dart.strategies.base import REGISTRY, Strategy, register
from dart.utils import UserError
from llava import dart_data

ROOT = Path(__file__).resolve().parents[1]
KEEP = 8
GRADED_ONE_BY_ONE = ["gqa", "mmbench", "mmbench_cn", "mme", "ocrbench", "pope", "qbench", "seed", "textvqa", "vizwiz"]
FORK = multiprocessing.get_context("fork")
DEADLINE = 60


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    """The plug-ins that pyproject.toml declares, whether or not this version of the project is installed."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.findall(r'\[project.entry-points."(dart\.\w+)"\]\n(\S+) = "(\S+)"\n', declared)
    points = [EntryPoint(name, value, group) for group, name, value in found]
    assert {point.group for point in points} == {loading.GROUP, data.GROUP}
    monkeypatch.setattr(utils, "entry_points", lambda group: [each for each in points if each.group == group])


# Statistics


def test_intervals_of_shares_are_wilsons_and_of_parts_bootstrapped():
    assert interval([1.0, 0.0, 1.0, 1.0]) == wilson(3, 4)
    scores = [0.3, 0.6, 1.0, 0.0] * 25
    low, high = interval(scores)
    error = 1.96 * np.std(scores) / len(scores) ** 0.5  # the normal approximation
    assert (low, high) == pytest.approx((np.mean(scores) - error, np.mean(scores) + error), abs=0.01)
    assert bootstrap(scores) == (low, high)  # seeded
    assert bootstrap([0.5] * 4) == (0.5, 0.5)


def test_wins_losses_and_relative_average():
    assert wins_and_losses([1, 1, 0, 0.6, 0.3], [1, 0, 1, 0.3, 0.6]) == (2, 2)
    assert relative_average([0.5, 0.3], [1.0, 0.4]) == pytest.approx((50 + 75) / 2)
    assert relative_average([0.5, None], [1.0, 0.4]) is None
    assert relative_average([0.5, 0.0], [1.0, 0.0]) is None


def test_pareto_front():
    assert front([(3, 9), (1, 5), (2, 4), (2, 7), (4, 9)]) == [(1, 5), (2, 7), (3, 9)]


# Data sets


def test_normalised_answers():
    assert normalised(" The  Red, car. ") == normalised("red car")
    assert normalised("-5") != normalised("5")
    assert equals_one(["38", "thirty eight"], "Thirty eight!") == 1.0
    assert equals_one(["38"], "It is 38") == 0.0


def write_own(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_own_data_is_read_from_a_folder_and_from_a_file(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "images" / "a.png")
    rows = [
        {"question": "What?", "answer": "A", "image": "a.png", "id": "first"},
        {"question": "And?", "answers": ["B", 7], "images": ["a.png", "images/a.png"]},
    ]
    folder = write_own(tmp_path / "set", rows)
    first, second = own_data(folder).samples
    assert (first.id, first.references) == ("first", ["A"])
    assert own_data(folder).grade({"first": "a", "2": "7."}) == {"first": 1.0, "2": 1.0}
    assert own_data(folder).grade({"first": "b"}) == {"first": 0.0}
    assert (second.id, second.references, len(second.pictures())) == ("2", ["B", "7"], 2)
    assert open_data(str(folder / "questions.jsonl")).samples == own_data(folder).samples
    assert open_data(str(folder)).name == "set"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "What?", "image": "a.png"}, "question 1 lacks a field: expected question, answer"),
        ({"question": "What?", "answer": "A"}, "question 1 lacks a field"),
        ({"question": "What?", "answer": "A", "image": "none.png"}, "question 1: none.png is neither in"),
    ],
)
def test_bad_own_data_is_named(tmp_path, row, words):
    with pytest.raises(UserError, match=re.escape(words)):
        own_data(write_own(tmp_path / "set", [row]))


def test_unknown_data_sets_are_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match=r"did you mean textvqa\?.*pope"):
        open_data("textvq")
    with pytest.raises(UserError, match="is no folder"):
        open_data(f"pope={tmp_path / 'none'}")
    with pytest.raises(UserError, match="a judge rates them"):
        open_data("mmvet")


def test_a_limit_draws_whole_units_of_all_kinds_and_more_contain_fewer():
    samples = [Sample(str(k), "", [], [], [], str(k // 2)) for k in range(20)]
    whole = DataSet("set", samples, dict, official=lambda texts: 1.0)
    few, more = (whole.limited(count).samples for count in (3, 6))
    assert len(few) == 6 and {s.id for s in few} < {s.id for s in more}
    assert [int(s.id) for s in more] == sorted(int(s.id) for s in more)
    assert all(few[k].unit == few[k + 1].unit for k in (0, 2, 4))
    assert whole.limited(3).official is None and whole.limited(10) is whole
    pope = dart_data.open_benchmark("pope", None).limited(24)  # its answers take turns: yes, no, yes, no
    assert 6 < sum(sample.references == ["yes"] for sample in pope.samples) < 18


@pytest.mark.parametrize("name", GRADED_ONE_BY_ONE)
def test_grades_of_single_answers_add_up_to_the_official_score(name):
    """With right and wrong answers mixed; units (MMBench's rotations) count as the official score counts them."""
    opened = dart_data.open_benchmark(name, None)
    numbers = {unit: k for k, unit in enumerate(dict.fromkeys(sample.counted_as for sample in opened.samples))}
    texts = {s.id: s.references[0] if numbers[s.counted_as] % 3 else "no" for s in opened.samples}
    graded = opened.grade(texts)
    units: dict[str, list[float]] = {}
    for sample in opened.samples:
        units.setdefault(sample.counted_as, []).append(graded[sample.id])
    mean = 100 * np.mean([min(own) for own in units.values()])
    known = {"mme": "accuracy", "pope": "accuracy", "ocrbench": "accuracy"}
    task, home = dart_data.tasks.get(name), dart_data.EMBEDDED_DATA
    rows = [
        {"question_id": e.question_id, "prompt": e.prompt, "text": text, **e.fields}
        for e, text in zip(task.examples(home), texts.values(), strict=True)
    ]
    figures = task.score(home, rows)
    assert 0 < mean < 100
    assert figures[known.get(name, "score")] == pytest.approx(mean, abs=0.01)
    assert opened.official(texts) == figures["score"]


# Rows and figures


def test_settings_have_the_controls_and_every_seed():
    settings = settings_of(methods_of("fastv", "uniform"), Rules([8, 0.5], "after-layer", 2, seeds=(3, 5)))
    assert [each.key for each in settings] == [
        "unpruned", "blind", "uniform@8", "fastv@8", "random@8#3", "random@8#5", "pooling@8",
        "uniform@0.5", "fastv@0.5", "random@0.5#3", "random@0.5#5", "pooling@0.5",
    ]  # fmt: skip
    assert methods_of("all", "dart") == strategies.available()


@pytest.mark.parametrize(("kind", "reached"), [("after-layer", 4), ("mean-over-layers", 28), ("pre-llm", 100)])
def test_what_a_budget_counts(kind, reached):
    assert Rules([4], kind, 1).reached([100, 4, 4, 4]) == reached


def fake(rights: dict[str, list[int]], per_layer: dict[str, list[int]]) -> Summary:
    """Of answers that are given: key of the setting -> right or wrong, tokens per layer."""
    samples = [Sample(str(k), "?", [], [], ["1"]) for k in range(4)]
    rows = {
        (sample.id, key): {
            "text": str(own[k]),
            "visual": 100,
            "per_layer": per_layer[key],
            "prefill_ms": 10.0 * k if k < 3 else None,
            "select_ms": 1.0,
            "kv_bytes": 2_000_000,
        }
        for key, own in rights.items()
        for k, sample in enumerate(samples)
    }
    settings = [
        Setting(key.split("@")[0], 8 if "@" in key else None, int(key[-1]) if "#" in key else None) for key in rights
    ]
    refused = {"fastv@8": "it cannot"} if "fastv@8" in rights else {}
    return Summary(
        DataSet("set", samples, lambda texts: {name: float(text == "1") for name, text in texts.items()}),
        SimpleNamespace(rows=rows),
        settings,
        refused,
        Rules([8], "after-layer", 1),
        "dart",
    )


def test_cells_worked_by_hand():
    rights = {
        "unpruned": [1, 1, 1, 1],
        "dart@8": [1, 1, 0, 0],
        "uniform@8": [1, 0, 1, 1],
        "random@8#0": [1, 0, 0, 0],
        "random@8#1": [1, 1, 0, 0],
        "fastv@8": [0, 0, 0, 0],
        "pooling@8": [0, 0, 0, 0],
    }
    per_layer = dict.fromkeys(rights, [100, 8]) | {"unpruned": [100, 100], "pooling@8": [100, 20]}
    cells = {cell["method"]: cell for cell in fake(rights, per_layer).cells()}
    dart_cell, uniform = cells["dart"], cells["uniform"]
    assert (dart_cell["score"], dart_cell["mean_tokens"], dart_cell["reached"]) == (0.5, 54, 8)
    assert (dart_cell["low"], dart_cell["high"]) == wilson(2, 4)
    assert (uniform["wins"], uniform["losses"], uniform["p"]) == (2, 1, 1.0)
    assert (uniform["prefill_ms"], uniform["timed"], uniform["kv_mb"]) == (10.0, 3, 2.0)
    assert cells["random"]["seeds"] == [0.25, 0.5] and cells["random"]["score"] == 0.375
    assert (cells["random"]["wins"], cells["random"]["losses"]) == (0, 0)  # half of the seeds right: right
    assert cells["fastv"]["reason"] == "it cannot" and "score" not in cells["fastv"]
    assert not cells["pooling"]["equal"] and "p" not in cells["pooling"] and "p" not in dart_cell
    rows = {row["method"]: row for row in averages(list(cells.values()), ["set"])}
    assert rows["uniform"]["relative"] == 75 and rows["fastv"]["relative"] is None and not rows["pooling"]["equal"]


# Whole runs on a random model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_checkpoints.llava_onevision(folder)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory, model) -> Path:
    """Four questions: about an image, the same image, two images, a video. The unpruned model is right in the first."""
    folder = tmp_path_factory.mktemp("own") / "own"
    noise = np.random.default_rng(0)
    (folder / "clip").mkdir(parents=True)
    for name in ("a", "b", "clip/0", "clip/1"):
        Image.fromarray(noise.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = [
        {"question": "What is <b>here</b>?", "answer": "A", "image": "a.png"},
        {"question": "What else?", "answers": ["A", "B"], "image": "a.png"},
        {"question": "Which of both?", "answer": "C", "images": ["a.png", "b.png"]},
        {"question": "What moves?", "answer": "D", "video": "clip"},
    ]
    write_own(folder, rows)
    asking = run.Asking(load(str(model), "cpu", None, None), Rules([KEEP], "after-layer", 2), 8, 0)
    rows[0]["answer"] = run._ask(run.Shown(asking, own_data(folder).samples[0]), Setting("unpruned"), 3, None)["text"]
    return write_own(folder, rows)


@register("broken-for-a-test")
class Broken(Strategy):
    def reduce(self, tokens):
        raise IndexError("no such place")


del REGISTRY["broken-for-a-test"]


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(REGISTRY, "broken", Broken())


def arguments(model, own, out, *more):
    words = ["--model", model, "--data", own, "--keep", f"{KEEP},0.5", "--budget-kind", "after-layer", "--out", out]
    words += ["--max-new-tokens", 3, "--seeds", "0,1"]
    return [str(word) for word in (*words, "--device", "cpu", *more)]


def refused(capsys, words):
    """The one line on stderr of a command that ends with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (line,) = (each for each in capsys.readouterr().err.splitlines() if each.startswith("error: "))
    return line


def texts(out: Path) -> dict[tuple[str, str], str]:
    rows = map(json.loads, (out / "answers" / "own.jsonl").read_text().splitlines())
    return {(row["sample"], row["setting"]): row["text"] for row in rows}


@pytest.fixture(scope="module")
def whole(model, own, tmp_path_factory):
    """The folder of a run of all methods, one of which is broken."""
    out = tmp_path_factory.mktemp("whole")
    REGISTRY["broken"] = Broken()
    try:
        main(arguments(model, own, out, "--timed", "1"))
    finally:
        del REGISTRY["broken"]
    return out


def test_every_method_is_a_row_and_refused_ones_say_why(whole):
    results = json.loads((whole / "results.json").read_text())
    cells = {(cell["method"], cell["budget"]): cell for cell in results["cells"]}
    known = {"unpruned", "blind", "broken", *strategies.available()}
    assert {method for method, _ in cells} == known
    assert cells["broken", KEEP]["reason"] == "IndexError: no such place"
    assert all("reason" in cell or 0 <= cell["low"] <= cell["score"] <= cell["high"] <= 1 for cell in cells.values())
    for method in ("dart", "random", "uniform", "divprune", "fastv"):
        assert cells[method, KEEP]["reached"] == cells[method, KEEP]["asked"] == KEEP
        assert cells[method, KEEP]["equal"] and cells[method, KEEP]["prefill_ms"] > 0
    assert len(cells["dart", KEEP]["per_layer"]) == 4 and cells["unpruned", None]["mean_tokens"] > 36
    assert results["methods"]["fastv"]["question_aware"] and not results["methods"]["uniform"]["question_aware"]
    table = (whole / "results.md").read_text()
    assert "broken: IndexError: no such place" in table and "| dart ? |" in table
    with (whole / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(cells)
    assert Image.open(whole / "pareto.png").width > 500


def test_the_report_is_one_file_without_addresses(whole):
    page = (whole / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page) and "{{" not in page
    assert set(re.findall(r"https?://[^\s\"']*", page)) == {"http://www.w3.org/2000/svg"}
    stored = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1)
    assert "<" not in stored
    report = json.loads(stored)
    rows = report["samples"]["own"]["rows"]
    assert [len(row["shown"]["views"]) for row in rows] == [2, 2, 2, 2]
    assert rows[0]["q"] == "What is <b>here</b>?"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("size", ["1300,900", "500,800"])
def test_the_report_in_a_browser(whole, tmp_path, size):
    """Sorting, filters, charts, keys and drawn tokens, clicked through by tests/report_clicks.js."""
    page = (whole / "report.html").read_text()
    stored = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    clicks = (ROOT / "tests" / "report_clicks.js").read_text()
    copy = tmp_path / "report.html"
    copy.write_text(page.replace("</body>", f"<script>{{{clicks}}}</script></body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S).group(1)))
    methods = [method["name"] for method in stored["methods"]]
    drawn = [row for row in stored["averages"] if row["budget"] is not None and "score" in row]
    assert seen["rows"] == len(stored["averages"]) == 2 + 2 * (len(methods) - 2)
    assert seen["budget"] == len(methods) and seen["points"] == len(drawn)
    assert seen["rising"][0].startswith("blind") and seen["falling"][0].startswith(max(methods))
    assert seen["sorted"] == "method" == seen["focus"]
    assert seen["moved"] and "tokens in the mean" in seen["tip"]
    assert seen["without"] == {"rows": 0, "points": len(drawn) - 2} and seen["pressed"] == "false"
    assert seen["bold"] == 0 and seen["first"] != seen["second"] and seen["back"] == seen["first"]
    keys, rows = stored["samples"]["own"]["keys"], stored["samples"]["own"]["rows"]
    both = [row for row in rows if row["v"][keys.index("unpruned")] == "1" and row["v"][keys.index("blind")] == "0"]
    assert both and seen["filtered"].startswith(f"{len(both)} of {len(rows)} questions")
    assert seen["light"]["dart"] < 0.8 * seen["light"]["unpruned"]
    assert re.search(r": \d+ of 36 patches kept", seen["label"])
    assert not seen["wide"]


def test_a_finished_run_asks_nothing_again_and_more_methods_only_what_is_new(model, own, whole, tmp_path, capsys):
    before = texts(whole)
    main(arguments(model, own, whole, "--timed", "1", "--methods", "dart"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["answers"] == 0
    main(arguments(model, own, whole, "--timed", "1", "--methods", "dart", "--keep", f"{KEEP},12"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["answers"] == 4 * (
        1 + 2 + 1
    )  # this model has no grid for pooling
    assert {key: value for key, value in texts(whole).items() if key in before} == before


def main_alone(words: list[str]) -> None:
    """`main` in a forked process: killed within tqdm's own lock, which forks share, it would stop the parent too."""
    tqdm.set_lock(threading.RLock())
    main(words)


def test_a_killed_run_loses_an_answer_at_most(model, own, whole, tmp_path):
    words, path = arguments(model, own, tmp_path, "--timed", "1"), tmp_path / "answers" / "own.jsonl"
    process = FORK.Process(target=main_alone, args=(words,))
    process.start()
    deadline = time.monotonic() + DEADLINE
    while (not path.is_file() or path.read_bytes().count(b"\n") < 20) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = path.read_bytes().count(b"\n")
    assert there >= 20
    with path.open("ab") as file:
        file.write(b'{"sample": "1", "sett')  # as if it had died within a line
    main(words)
    lines = path.read_text().splitlines()
    assert len({(r["sample"], r["setting"]) for r in map(json.loads, lines)}) == len(lines)
    expected = texts(whole)
    assert all(expected[key] == text for key, text in texts(tmp_path).items())
    assert (tmp_path / "report.html").is_file()


def test_sharing_the_vision_tower_changes_no_answer(model, own, whole, tmp_path):
    """`whole` times the first sample alone; here all are timed, and each runs the tower itself."""
    main(arguments(model, own, tmp_path, "--timed", "4"))
    alone = texts(tmp_path)
    assert len(alone) > 60
    assert {key: text for key, text in texts(whole).items() if key in alone} == alone


@pytest.mark.parametrize("make", ["llava_onevision", "qwen3_vl", "internvl", "gemma3", "mistral3"])
def test_the_tower_runs_once_for_a_sample(make, own, tmp_path):
    getattr(tiny_checkpoints, make)(tmp_path)
    loaded = load(str(tmp_path), "cpu", None, None)
    shared = SharedVision(loaded.model)
    (tower,) = shared.towers
    runs = []
    next(part for name, part in tower.named_modules() if "embed" in name).register_forward_hook(
        lambda *_: runs.append(1)
    )
    shown = run.Shown(run.Asking(loaded, Rules([0.5], "after-layer", 3), 2, 0), own_data(own).samples[0])
    settings = [Setting("unpruned"), *(Setting(method, 0.5) for method in ("dart", "uniform", "divprune"))]
    together = [run._ask(shown, setting, 6, shared) for setting in settings]
    assert len(runs) == 1
    apart = [run._ask(shown, setting, 6, None) for setting in settings]
    assert len(runs) == 1 + len(settings)
    assert [(a["text"], a["kept"], a["per_layer"]) for a in together] == [
        (a["text"], a["kept"], a["per_layer"]) for a in apart
    ]
    run._ask(shown, Setting("blind"), 2, shared)
    assert len(runs) == 2 + len(settings) and "forward" not in vars(tower)


def test_answers_of_other_settings_are_refused(model, own, whole, capsys):
    line = refused(capsys, arguments(model, own, whole, "--timed", "1", "--layer", "1"))
    assert "layer: 2 there, 1 now" in line and "--overwrite" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "dort"], "unknown strategy 'dort' (did you mean dart?)"),
        (["--methods", ","], "names none"),
        (["--keep", "1.5"], "expected tokens"),
        (["--baseline", "fastw", "--methods", "dart"], "unknown strategy 'fastw' (did you mean fastv?)"),
        (["--data", "none.jsonl"], "is neither a file"),
        (["--limit", "0"], "expected a number from 1"),
        (["--model", "./none"], "model path ./none does not exist"),
    ],
)
def test_bad_input_is_one_line(model, own, tmp_path, capsys, words, said):
    assert said in refused(capsys, arguments(model, own, tmp_path, *words))


def test_an_image_that_cannot_be_read_ends_the_run_and_is_named(model, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no image")
    folder = write_own(tmp_path, [{"question": "What?", "answer": "A", "image": "a.png"}])
    line = refused(capsys, arguments(model, folder, tmp_path / "out"))
    assert f"sample 1 of {tmp_path.name}: image " in line and "a.png" in line


def test_a_model_that_cannot_answer_at_all_ends_the_run(model, own, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(run, "answer", fail)
    assert "the model cannot answer sample 1 of own: OutOfMemoryError" in refused(
        capsys, arguments(model, own, tmp_path)
    )


def test_pre_llm_budgets_prune_before_the_llm_or_say_why_not(model, own, tmp_path):
    words = arguments(model, own, tmp_path, "--methods", "dart,fastv", "--limit", "1")
    words[words.index("after-layer")] = "pre-llm"
    main(words)
    cells = {(c["method"], c["budget"]): c for c in json.loads((tmp_path / "results.json").read_text())["cells"]}
    assert cells["dart", KEEP]["per_layer"] == [KEEP] * 4
    assert "choose layer=1 or more" in cells["fastv", KEEP]["reason"]
