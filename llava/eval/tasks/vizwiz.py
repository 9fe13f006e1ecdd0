"""VizWiz: test makes a submission file for the server, val is scored with the challenge's accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dart.utils import write_json
from llava.eval.engine.answers import Answers, all_lines, answer_to, by_question
from llava.eval.engine.challenge import accuracy_of, references_of, score_challenge
from llava.eval.engine.examples import Example
from llava.eval.engine.normalize import normalize_answer
from llava.eval.tasks.base import Sample, Split, Task, register
from llava.files import read_json

NAME = "VizWiz"
TEST, VAL = "llava_test.jsonl", "val.json"
REQUEST = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)


def submission(questions: Sequence[Mapping[str, Any]], answers: Answers) -> list[dict[str, str]]:
    """The server's rows for LLaVA's test questions. Raises UserError for a missing answer."""
    given = by_question(answers)
    texts = [answer_to(given, q["question_id"], NAME) for q in questions]
    return [{"image": q["image"], "answer": normalize_answer(t)} for q, t in zip(questions, texts, strict=True)]


@register("vizwiz")
class VizWiz(Task):
    folder = "vizwiz"
    source = "https://vizwiz.org/tasks-and-datasets/vqa (pictures and val.json) and LLaVA's eval.zip (llava_test.jsonl)"
    splits = {
        "test": Split(
            {TEST: "questions", "test": "pictures"}, TEST, "test", "https://eval.ai/web/challenges/challenge-page/2185"
        ),
        "val": Split({VAL: "questions and answers", "val": "pictures"}, VAL, "val"),
    }

    def read(self, home: Path, part: Split) -> Sequence[Example]:
        if part.questions != VAL:
            return super().read(home, part)
        return [
            Example(row["image"], f"{row['question']}\n{REQUEST}", home / part.images / row["image"])
            for row in read_json(home / VAL)
        ]

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return score_challenge(NAME, read_json(data / self.folder / VAL), "image", answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        given, truths = by_question(answers), read_json(data / self.folder / VAL)
        asked = [(truth, given[str(truth["image"])]) for truth in truths if str(truth["image"]) in given]
        return [Sample(accuracy_of(truth, row["text"]), [row], references_of(truth)) for truth, row in asked]

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path | None:
        if split == "val":
            return None
        path = stem.with_name(stem.name + ".json")
        write_json(path, submission(all_lines(data / self.folder / TEST), answers))
        return path
