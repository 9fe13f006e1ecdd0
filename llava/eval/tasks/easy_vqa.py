"""easy-VQA (the PyPI package of that name), converted by `python -m dev.tiny.easy_vqa`: exact match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers, percent
from llava.eval.engine.normalize import normalize_answer
from llava.eval.tasks.base import Sample, Split, Task, register
from llava.files import read_json

QUESTIONS, IMAGES, ANSWERS = "llava_easy_vqa_test.jsonl", "images", "answers.json"


@register("easy_vqa")
class EasyVqa(Task):
    folder = "easy_vqa"
    source = "pip install easy-vqa, then python -m dev.tiny.easy_vqa"
    splits = {"test": Split({QUESTIONS: "questions", IMAGES: "pictures", ANSWERS: "answers"}, QUESTIONS, IMAGES)}
    max_new_tokens = 16

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        truth = read_json(data / self.folder / ANSWERS)
        if unknown := [row["question_id"] for row in answers if row["question_id"] not in truth]:
            raise UserError(f"easy-VQA has no question {unknown[0]}; convert the same split again")
        right = [normalize_answer(row["text"]) == normalize_answer(truth[row["question_id"]]) for row in answers]
        return [Sample(float(hit), [row], [truth[row["question_id"]]]) for hit, row in zip(right, answers, strict=True)]

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        right = sum(sample.score for sample in self.samples(data, answers))
        return {"score": percent(right, len(answers)), "samples": len(answers)}
