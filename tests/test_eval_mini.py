"""The embedded mini benchmarks fit the scorers: right answers score full marks, constant ones about half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import tasks
from llava.eval.engine.answers import read_lines
from llava.eval.engine.figures import parts_of
from llava.eval.tasks import mme, pope, textvqa

MINI = Path(__file__).resolve().parents[1] / "playground" / "data" / "mini"
LEAST_QUESTIONS = 200


def _questions(name: str) -> list[dict]:
    task = tasks.get(name)
    questions = list(read_lines(MINI / task.folder / task.splits[task.split(MINI)].questions))
    assert [(q["question_id"], q["text"]) for q in questions] == [
        (e.question_id, e.prompt) for e in task.examples(MINI)
    ]
    assert len(questions) >= LEAST_QUESTIONS
    return questions


def _truth(name: str, question: dict) -> str:
    row = {"question_id": question["question_id"], "prompt": question["text"]}
    if name == "mme":
        return mme.truth_of(mme.read_truth(MINI / "MME" / mme.IMAGES), row)[2]
    if name == "textvqa":
        data = json.loads((MINI / "textvqa" / textvqa.ANNOTATIONS).read_text())["data"]
        wanted = (question["question_id"], textvqa.question_of(question["text"]))
        return next(a["answers"][0] for a in data if (a["image_id"], a["question"].lower()) == wanted)
    labels = read_lines(MINI / "pope" / "coco" / f"coco_pope_{question['category']}.json")
    return next(
        r["label"] for r in labels if r["image"] == question["image"] and question["text"].startswith(r["text"])
    )


def _score(name: str, texts: list[str]) -> dict:
    answers = [
        {"question_id": q["question_id"], "prompt": q["text"], "text": text}
        for q, text in zip(_questions(name), texts, strict=True)
    ]
    return tasks.get(name).score(MINI, answers)


@pytest.mark.parametrize("name", ["textvqa", "pope", "mme"])
def test_right_answers_score_full_marks(name: str) -> None:
    result = _score(name, [_truth(name, q).capitalize() for q in _questions(name)])
    assert result["accuracy" if name == "mme" else "score"] == 100.0
    if name == "mme":
        assert all(row["score"] == 200.0 for row in result["subtasks"].values())


def test_constant_answers_are_near_chance() -> None:
    result = _score("pope", ["Yes"] * len(_questions("pope")))
    assert [row["categories"] for row in parts_of(result)] == list(pope.CATEGORIES)
    for row in result["categories"].values():
        assert row["yes"] == 100.0 and row["recall"] == 100.0 and 40 <= row["accuracy"] <= 60
    said_yes = _score("mme", ["Yes"] * len(_questions("mme")))
    assert all(row["accuracy_plus"] <= 5.0 for row in said_yes["subtasks"].values())
