"""Probe sets: the same bytes for a seed, balanced answers, evidence that is the evidence, files that the tasks read."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dart.utils import UserError
from llava.eval import run, suite, tasks
from llava.eval.probe import files, scenes, validate
from llava.eval.probe.drawing import GRID, Thing
from llava.eval.probe.files import ensure, items_of, write_split
from llava.eval.probe.scenes import ANSWERS, PATCH
from llava.eval.probe.sets import SETS, SPLITS, seed_of, split_of
from llava.eval.probe.validate import ALONE, WITHOUT, Validation
from llava.eval.suite import Setting
from llava.files import EMBEDDED_MODEL

FEW = 6


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(files, "QUESTIONS_PER_SET", FEW)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_has_the_same_bytes_and_another_seed_others(tmp_path):
    for name, split in (("a", "noise"), ("b", "noise"), ("c", "noise-seed1")):
        write_split(tmp_path / name, split, 2)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and len(a) == 5
    assert all(a[path] != c[path] for path in a if path != "questions.jsonl")


@pytest.mark.parametrize("name", SETS)
def test_answers_and_strata_are_balanced(name):
    knobs = SETS[name].knobs
    cells = Counter(files.plan(knobs, random.Random(0), files.QUESTIONS_PER_SET))
    assert {stratum for _, stratum in cells} == set(knobs.strata)
    assert len(cells) == len(ANSWERS[knobs.ask]) * len(knobs.strata) and len(set(cells.values())) == 1


def box_of(thing: Thing) -> np.ndarray:
    """bool [GRID, GRID]: the tokens that a thing's extents lie in."""
    rows, columns = (np.arange(GRID) / GRID for _ in range(2))
    down = (rows + 1 / GRID > thing.y - thing.ry) & (rows < thing.y + thing.ry)
    across = (columns + 1 / GRID > thing.x - thing.rx) & (columns < thing.x + thing.rx)
    return down[:, None] & across[None]


@pytest.mark.parametrize("name", SETS)
def test_the_evidence_is_where_the_targets_are(name):
    knobs = SETS[name].knobs
    for item in items_of(name, 3):
        targets = item.scene.things[-item.targets :]
        boxes = np.logical_or.reduce([box_of(thing) for thing in targets])
        assert boxes.sum() == item.targets * knobs.rows * knobs.columns  # no target lies across more tokens than said
        evidence = item.evidence()
        assert not (evidence & ~boxes).any()
        full = [box_of(thing) for thing in targets if thing.kind == "rectangle"]
        assert all(evidence[box].all() for box in full)
        assert evidence.sum() > boxes.sum() / 2
        pixels = (np.asarray(item.image()) != np.asarray(item.image(targets=False))).any(-1)
        assert not pixels[~np.kron(evidence, np.ones((PATCH, PATCH), bool))].any()


def test_the_answer_is_in_the_image():
    for item in items_of("named", 6):
        target = item.scene.things[-1]
        assert target.color == item.answer and item.question == f"What color is the {target.kind}?"
        assert [thing.kind for thing in item.scene.things].count(target.kind) == 1
    for item in items_of("details-4", 8):
        pairs = {f"Is there a {thing.color} {thing.kind} in the image?" for thing in item.scene.things}
        assert (item.question in pairs) == (item.answer == "Yes")
    for item in items_of("text", 4):
        (sign,) = item.scene.things
        assert sign.number == item.answer and item.question == "What number is on the sign?"
    for item in items_of("identical", 6):
        assert len({(thing.kind, thing.color) for thing in item.scene.things}) == 1
        assert scenes.COUNTS[len(item.scene.things) - 1] == item.answer and item.targets == len(item.scene.things)
    for item in items_of("camouflage", 4):
        target, *twins = item.scene.things[::-1]
        assert ("left" if target.x < 0.5 else "right") == item.answer
        assert {thing.color for thing in twins} == {target.color} and target.kind not in {t.kind for t in twins}


def test_places_are_their_strata():
    for item in items_of("places", 24):
        rows, columns = np.nonzero(item.evidence())
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        assert {
            "corner": {top, GRID - 1 - bottom} & {0} and {left, GRID - 1 - right} & {0},
            "top": bottom < GRID // 4,
            "bottom": top >= GRID * 3 // 4,
            "border": left < GRID // 2 <= right,
        }[item.stratum]


def test_the_task_makes_reads_and_scores_a_set(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "QUESTIONS_PER_SET", number := 8)  # two strata: six answers, then two
    task = tasks.get("probe")
    examples = task.examples(tmp_path, "places-seed1")
    assert len(examples) == number and all(example.picture().size == (336, 336) for example in examples)
    annotations = json.loads((tmp_path / "probe/places-seed1/annotations.json").read_text())
    right = {row["image_id"]: row["answers"][0] for row in annotations["data"]}
    answers = [{"question_id": e.question_id, "prompt": e.prompt, "text": right[e.question_id]} for e in examples]
    assert task.score(tmp_path, answers, "places-seed1")["score"] == 100.0
    answers[0]["text"] = "purple"
    figures = task.score(tmp_path, answers, "places-seed1")
    assert figures["score"] == pytest.approx(100 * (number - 1) / number, abs=0.01)
    assert sum(part["samples"] for part in figures["parts"].values()) == number
    again = contents(tmp_path)
    task.examples(tmp_path, "places-seed1")
    assert contents(tmp_path) == again


def test_a_set_is_whole_or_absent_and_of_this_version(few, tmp_path, monkeypatch):
    def interrupted(folder, split, number):
        (folder / "images").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_split", interrupted)
        ensure(tmp_path, "specks")
    assert list(tmp_path.iterdir()) == []

    def overtaken(folder, split, number):
        write_split(folder, split, number)
        shutil.copytree(folder, tmp_path / split)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_split", overtaken)
        ensure(tmp_path, "specks")
    assert [path.name for path in tmp_path.iterdir()] == ["specks"]
    evidence = tmp_path / "specks" / "evidence.json"
    header = json.loads(evidence.read_text())
    header["knobs"]["rows"] += 1
    evidence.write_text(json.dumps(header))
    with pytest.raises(UserError, match="another version; remove the folder"):
        ensure(tmp_path, "specks")


def test_names_of_splits():
    assert split_of("specks", 0) == "specks" and split_of("specks", 2) == "specks-seed2"
    assert seed_of("needle-2x2-seed1") == ("needle-2x2", 1) and seed_of("details-4") == ("details-4", 0)
    assert len(set(SPLITS)) == 3 * len(SETS)


def test_the_evidence_alone_answers_and_nothing_else_does(few, tmp_path, capsys):
    data = tmp_path / "data"
    out = tmp_path / "probe.json"
    validation = Validation(str(EMBEDDED_MODEL), lambda _: data, out, tmp_path / "work", ["--batch-size", "6"])
    validation.cells(["probe:needle-2x2"], [WITHOUT, ALONE, Setting("divprune-64", "divprune", 64)])
    scores = validate.scores_of(json.loads(out.read_text()), "needle-2x2")
    assert scores[ALONE.name] == 100.0 and scores[WITHOUT.name] <= 100 / 3
    validation.cells(["probe:text"], [WITHOUT])  # a set's own layer: behind it the digits lie elsewhere, too
    cell = validation.results["cells"]["probe:text/without-evidence"]
    assert cell["mean_tokens"] == pytest.approx((576 + 5 * cell["tokens"][1]) / 6, abs=0.1)
    assert cell["score"] <= 100 / 3
    assert validation.results["cells"]["probe:needle-2x2/evidence-alone"]["tokens"] == [576, 4]
    assert validation.results["cells"]["probe:needle-2x2/without-evidence"]["tokens"] == [576, 572]
    flags = ["--task", "probe", "--split", "needle-2x2", "--data", str(data), "--model-path", str(EMBEDDED_MODEL)]
    run.main([*flags, "--batch-size", "6", "--answers-file", str(tmp_path / "answers.jsonl")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["score"] >= 80


def test_a_validation_says_what_fails():
    good = {"unpruned": 98.0, "blind": 2.0, "without-evidence": 12.0, "evidence-alone": 97.0, "random-64": 50.0}
    good |= {"random-32": 30.0, "random-128": 80.0}
    assert validate.faults("needle-2x2", good) == []
    assert validate.gap(good, "random-64") == pytest.approx(100 * 38 / 86)
    assert validate.chance_budget(good) == 64
    bad = {"unpruned": 94.0, "blind": 30.0, "without-evidence": 60.0, "evidence-alone": 80.0}
    faults = validate.faults("needle-2x2", bad)
    assert all(word in fault for word, fault in zip(("unpruned", "image", "without", "alone"), faults, strict=True))
    faults = validate.faults("identical", bad)
    assert len(faults) == 2 and not any("alone" in fault for fault in faults)


def test_what_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="probe has no split 'needle'; known: needle-1x1"):
        suite.part_of("probe:needle")
    with pytest.raises(UserError, match="probe has no split 'needle'"):
        tasks.get("probe").examples(tmp_path, "needle")
    assert suite.part_of("pope") == (tasks.get("pope"), None)
    for flags, words in (
        (["--sets", "needle"], "--sets: unknown needle"),
        (["--seeds", "4"], "--seeds must be 1 to 3"),
    ):
        with pytest.raises(SystemExit) as stop:
            validate.main(list(flags))
        assert stop.value.code == 2 and words in capsys.readouterr().err


def test_images_are_of_the_towers_size(tmp_path):
    write_split(tmp_path / "bars", "bars", 1)
    image = Image.open(tmp_path / "bars" / "images" / "0000.png")
    assert image.mode == "RGB" and image.size == (GRID * PATCH, GRID * PATCH)
