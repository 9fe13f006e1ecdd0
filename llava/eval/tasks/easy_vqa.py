"""easy-VQA (the PyPI package of that name), converted by `python -m scripts.tiny.easy_vqa`: exact match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.cli_errors import UserError
from llava.eval.answers import read_json
from llava.eval.normalize import normalize_answer
from llava.eval.tasks.base import ExampleFiles, register, require

QUESTIONS, IMAGES, ANSWERS = "llava_easy_vqa_test.jsonl", "images", "answers.json"


@register("easy_vqa")
class EasyVqa:
    source = "pip install easy-vqa, then python -m scripts.tiny.easy_vqa"
    max_new_tokens = 16

    def examples(self, data: Path) -> ExampleFiles:
        folder = data / "easy_vqa"
        require(folder, {QUESTIONS: "questions", IMAGES: "pictures", ANSWERS: "answers"}, self.source)
        return ExampleFiles(folder / QUESTIONS, folder / IMAGES)

    def score(self, data: Path, answers: list[dict[str, Any]]) -> dict[str, Any]:
        truth = read_json(data / "easy_vqa" / ANSWERS)
        if unknown := [row["question_id"] for row in answers if row["question_id"] not in truth]:
            raise UserError(f"easy-VQA has no question {unknown[0]}; convert the same split again")
        right = sum(normalize_answer(row["text"]) == normalize_answer(truth[row["question_id"]]) for row in answers)
        return {"score": round(100 * right / max(1, len(answers)), 2), "samples": len(answers)}
