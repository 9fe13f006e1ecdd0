"""ScienceQA: a question with options, with or without an image; the answer is a letter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers, by_question, percent
from llava.eval.engine.choices import LETTER_REQUEST, LETTERS
from llava.eval.engine.examples import Example
from llava.eval.tasks.base import Sample, Split, Task, register
from llava.files import read_json

QUESTIONS, IMAGES = "llava_test_CQM-A.json", "images/test"
PROBLEMS, SPLITS = "problems.json", "pid_splits.json"
IMAGE = "<image>"
FAILED = "FAILED"
ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


def read_questions(path: Path, images: Path, single_pred_prompt: bool) -> list[Example]:
    """LLaVA's JSON list {"id", "conversations", "image" (may be missing)}. Raises UserError naming a bad entry.

    single_pred_prompt: ask for the letter alone.
    """
    examples = []
    for number, row in enumerate(read_json(path), 1):
        if not row.get("conversations") or "id" not in row:
            raise UserError(f"{path} question {number} lacks id or conversations; get the file again")
        asked = row["conversations"][0]["value"].replace(IMAGE, "").strip()
        if single_pred_prompt:
            asked += f"\n{LETTER_REQUEST}"
        image = images / row["image"] if "image" in row else None
        examples.append(Example(row["id"], asked, image, asked if image is None else f"{IMAGE}\n{asked}"))
    return examples


def letter_of(text: str) -> str:
    """LLaVA's rule: the letter alone, a letter in front of ". ", or one "The answer is X."; else FAILED."""
    if len(text) == 1 and text in LETTERS:
        return text
    if text[:1] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else FAILED


def judge(problems: Mapping[str, Any], answers: Answers) -> list[dict[str, Any]]:
    """One row per problem, in LLaVA's output fields plus `index`: the option chosen, -1 for none that exists."""
    given = {str(row["question_id"]): row for row in answers}
    rows = []
    for key, problem in problems.items():
        answer = given.get(key, {"text": FAILED, "prompt": IMAGE if problem.get("image") else ""})
        parsed = letter_of(answer["text"])
        known = LETTERS[: len(problem["choices"])]
        rows.append(
            {
                "question_id": key,
                "parsed_ans": parsed,
                "ground_truth": LETTERS[problem["answer"]],
                "question": answer["prompt"],
                "pred": answer["text"],
                "is_multimodal": IMAGE in answer["prompt"],
                "index": known.find(parsed) if len(parsed) == 1 else -1,
            }
        )
    return rows


def is_right(row: Mapping[str, Any]) -> bool:
    return row["index"] >= 0 and LETTERS[row["index"]] == row["ground_truth"]


def problems_of(folder: Path, split: str = "test") -> dict[str, Any]:
    """The split's problems by id. Raises UserError for an unknown split."""
    ids = read_json(folder / SPLITS)
    if split not in ids:
        raise UserError(f"{folder / SPLITS} has no split {split!r}; known: {', '.join(ids)}")
    problems = read_json(folder / PROBLEMS)
    return {key: problems[key] for key in ids[split]}


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Percentages; the headline is that of questions with an image, which the papers report. No answer is wrong."""
    parts = {}
    for name, own in (
        ("all", rows),
        ("image", [r for r in rows if r["is_multimodal"]]),
        ("text", [r for r in rows if not r["is_multimodal"]]),
    ):
        right = sum(map(is_right, own))
        failed = sum(r["parsed_ans"] == FAILED for r in own)
        parts[name] = {"accuracy": percent(right, len(own)), "samples": len(own), "no_letter": failed}
    return {"score": parts["image"]["accuracy"], "accuracy": parts["all"]["accuracy"], "parts": parts}


@register("sqa")
class ScienceQa(Task):
    folder = "scienceqa"
    source = "https://github.com/lupantech/ScienceQA (data/scienceqa) and LLaVA's eval.zip (the question file)"
    splits = {
        "test": Split(
            {QUESTIONS: "questions", IMAGES: "pictures", PROBLEMS: "answers", SPLITS: "ids of the test split"},
            QUESTIONS,
            IMAGES,
        )
    }
    max_new_tokens = 1024

    def read(self, home: Path, part: Split) -> Sequence[Example]:
        return read_questions(home / part.questions, home / part.images, single_pred_prompt=True)

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return figures_of(judge(problems_of(data / self.folder), answers))

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        """Those with an image, as the headline."""
        given = by_question(answers)
        rows = [row for row in judge(problems_of(data / self.folder), answers) if row["question_id"] in given]
        return [
            Sample(float(is_right(row)), [given[row["question_id"]]], [row["ground_truth"]])
            for row in rows
            if row["is_multimodal"]
        ]
