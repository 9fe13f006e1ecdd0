"""SEED-Bench: four options, the answer is a letter; accuracy by type of question, for images and video frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.eval.engine.answers import Answers, answer_to, by_question, percent, write_lines
from llava.eval.tasks.base import Sample, Split, Task, register
from llava.files import read_json

NAME = "SEED-Bench"
QUESTIONS, ANNOTATIONS = "llava-seed-bench.jsonl", "SEED-Bench.json"


def score_answers(annotations: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
    """Percentages over all annotated questions: an answer counts when it is the letter alone, as in LLaVA's scorer.

    Raises UserError when an answer is missing.
    """
    given = by_question(answers)
    names = {number: name for name, number in annotations["question_type"].items()}
    right: dict[str, list[bool]] = defaultdict(list)
    for question in annotations["questions"]:
        hit = answer_to(given, question["question_id"], NAME) == question["answer"]
        for name in ("all", question["data_type"], names[question["question_type_id"]]):
            right[name].append(hit)
    figures = {n: {"accuracy": percent(sum(r), len(r)), "samples": len(r)} for n, r in right.items()}
    whole = figures.pop("all", {"accuracy": 0.0, "samples": 0})
    return {"score": whole["accuracy"], "samples": whole["samples"], "parts": figures}


def write_submission(annotations: Mapping[str, Any], answers: Answers, path: Path) -> None:
    """JSON lines {"question_id", "prediction"} in the annotations' order. Raises UserError for a missing answer."""
    given = by_question(answers)
    ids = [question["question_id"] for question in annotations["questions"]]
    write_lines(path, [{"question_id": key, "prediction": answer_to(given, key, NAME)} for key in ids])


@register("seed")
class Seed(Task):
    folder = "seed_bench"
    source = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench and LLaVA's eval.zip (the question file)"
    splits = {"all": Split({QUESTIONS: "questions", ANNOTATIONS: "answers"}, QUESTIONS)}

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return score_answers(read_json(data / self.folder / ANNOTATIONS), answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        given = by_question(answers)
        questions = read_json(data / self.folder / ANNOTATIONS)["questions"]
        asked = [(q["answer"], given[str(q["question_id"])]) for q in questions if str(q["question_id"]) in given]
        return [Sample(float(row["text"] == truth), [row], [truth]) for truth, row in asked]

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path:
        path = stem.with_name(stem.name + ".jsonl")
        write_submission(read_json(data / self.folder / ANNOTATIONS), answers, path)
        return path
