"""VQAv2: test-dev makes a submission file for the server, val is scored with the challenge's accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dart.utils import write_json
from llava.eval.engine.answers import Answers, by_question, read_lines
from llava.eval.engine.challenge import accuracy_of, references_of, score_challenge
from llava.eval.engine.examples import Example
from llava.eval.engine.normalize import normalize_answer
from llava.eval.tasks.base import Sample, Split, Task, register
from llava.files import read_json

TEST_DEV, TEST = "llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl"
VAL = "v2_OpenEnded_mscoco_val2014_questions.json"
VAL_ANSWERS = "v2_mscoco_val2014_annotations.json"
VAL_PICTURE = "COCO_val2014_{:012d}.jpg"
SHORT_ANSWER = "Answer the question using a single word or phrase."


def submission(questions: Sequence[Any], answers: Answers) -> list[dict[str, Any]]:
    """The server's rows for all questions (ids) of the test split; one that was not asked is left empty."""
    given = by_question(answers)
    texts = {key: normalize_answer(row["text"]) for key, row in given.items()}
    return [{"question_id": key, "answer": texts.get(str(key), "")} for key in questions]


@register("vqav2")
class VqaV2(Task):
    folder = "vqav2"
    source = "https://visualqa.org/download.html (pictures, val questions and annotations) and LLaVA's eval.zip (test)"
    splits = {
        "test-dev": Split(
            {TEST_DEV: "questions", TEST: "all questions of the test split", "test2015": "pictures"},
            TEST_DEV,
            "test2015",
            "https://eval.ai/web/challenges/challenge-page/830",
        ),
        "val": Split({VAL: "questions", VAL_ANSWERS: "annotations", "val2014": "pictures"}, VAL, "val2014"),
    }

    def read(self, home: Path, part: Split) -> Sequence[Example]:
        if part.questions != VAL:
            return super().read(home, part)
        return [
            Example(
                row["question_id"],
                f"{row['question']}\n{SHORT_ANSWER}",
                home / part.images / VAL_PICTURE.format(row["image_id"]),
            )
            for row in read_json(home / VAL)["questions"]
        ]

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        annotations = read_json(data / self.folder / VAL_ANSWERS)["annotations"]
        return score_challenge("VQAv2", annotations, "question_id", answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        given, truths = by_question(answers), read_json(data / self.folder / VAL_ANSWERS)["annotations"]
        asked = [(truth, given[str(truth["question_id"])]) for truth in truths if str(truth["question_id"]) in given]
        return [Sample(accuracy_of(truth, row["text"]), [row], references_of(truth)) for truth, row in asked]

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path | None:
        if split == "val":
            return None
        path = stem.with_name(stem.name + ".json")
        asked = [row["question_id"] for row in read_lines(data / self.folder / TEST)]
        write_json(path, submission(asked, answers))
        return path
