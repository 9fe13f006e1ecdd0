"""GQA testdev-balanced: one-word answers, exact match."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dart.utils import UserError, write_json
from llava.eval.engine.answers import Answers, answer_to, by_question, percent
from llava.eval.tasks.base import Sample, Split, Task, register
from llava.files import read_json

QUESTIONS, IMAGES = "llava_gqa_testdev_balanced.jsonl", "data/images"
ANNOTATIONS = "data/testdev_balanced_questions.json"


def prediction_of(text: str) -> str:
    """LLaVA's form of an answer: lower case, no full stop at the end."""
    return text.rstrip(".").lower()


def predictions(answers: Answers) -> list[dict[str, Any]]:
    """The rows of GQA's prediction file."""
    return [{"questionId": row["question_id"], "prediction": prediction_of(row["text"])} for row in answers]


def is_right(question: Mapping[str, Any], text: str) -> bool:
    return bool(prediction_of(text) == question["answer"])


def score_answers(annotations: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
    """Percentages over the balanced questions: all, open and binary ones, and by structural and semantic type.

    Raises UserError when a question has no answer.
    """
    given = by_question(answers)
    right: dict[str, list[bool]] = defaultdict(list)
    for key, question in annotations.items():
        if not question.get("isBalanced", True):
            continue
        hit = is_right(question, answer_to(given, key, "GQA"))
        types = question["types"]
        for name in ("all", "open" if types["structural"] == "query" else "binary"):
            right[name].append(hit)
        right[f"structural: {types['structural']}"].append(hit)
        right[f"semantic: {types['semantic']}"].append(hit)
    parts = {n: {"accuracy": percent(sum(r), len(r)), "samples": len(r)} for n, r in sorted(right.items())}
    whole = parts.pop("all", {"accuracy": 0.0, "samples": 0})
    return {"score": whole["accuracy"], "samples": whole["samples"], "parts": parts}


@register("gqa")
class Gqa(Task):
    folder = "gqa"
    source = (
        "https://cs.stanford.edu/people/dorarad/gqa (questions1.2 and images) and LLaVA's eval.zip (the question file)"
    )
    splits = {"testdev": Split({QUESTIONS: "questions", IMAGES: "pictures", ANNOTATIONS: "answers"}, QUESTIONS, IMAGES)}

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return score_answers(read_json(data / self.folder / ANNOTATIONS), answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        questions = read_json(data / self.folder / ANNOTATIONS)
        asked = [(questions.get(str(row["question_id"])), row) for row in answers]
        if unknown := [row["question_id"] for question, row in asked if question is None]:
            raise UserError(f"GQA has no question {unknown[0]}; are answers and annotations of the same release?")
        counted = [(question, row) for question, row in asked if question.get("isBalanced", True)]
        return [Sample(float(is_right(truth, row["text"])), [row], [truth["answer"]]) for truth, row in counted]

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path:
        path = stem.with_name(stem.name + ".json")
        write_json(path, predictions(answers))
        return path
