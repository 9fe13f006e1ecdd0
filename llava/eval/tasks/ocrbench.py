"""OCRBench: 1000 questions about text in images; an answer counts when it contains the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dart.utils import write_json
from llava.eval.engine.answers import Answers, answer_to, by_question, percent
from llava.eval.engine.examples import Example
from llava.eval.tasks.base import Sample, Split, Task, read_entries, register

QUESTIONS, IMAGES = "OCRBench/OCRBench.json", "OCRBench_Images"
FIELDS = ("image_path", "question", "answers", "type", "dataset_name")
FORMULAS = "HME100k"  # compared without any spaces and with case
RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
GROUPS = dict.fromkeys(RECOGNITION, "Text Recognition")


def read_questions(path: Path, images: Path) -> list[Example]:
    """The questions as they are, nothing added. Question ids are places in the file, from 0. Raises UserError."""
    return [
        Example(number, entry["question"], images / entry["image_path"])
        for number, entry in enumerate(read_entries(path, FIELDS))
    ]


def is_right(dataset: str, truths: str | Sequence[str], text: str) -> bool:
    """The official rule: one of the true answers occurs in the text."""

    def plain(words: str) -> str:
        flat = words.strip().replace("\n", " ")
        return flat.replace(" ", "") if dataset == FORMULAS else flat.lower()

    return any(plain(truth) in plain(text) for truth in ([truths] if isinstance(truths, str) else truths))


def judged(entries: Sequence[Mapping[str, Any]], answers: Answers) -> list[dict[str, Any]]:
    """The official result file: every entry with `predict` and `result` (1 or 0). Raises UserError."""
    given = by_question(answers)
    rows = []
    for number, entry in enumerate(entries):
        text = answer_to(given, number, "OCRBench")
        rows.append({**entry, "predict": text, "result": int(is_right(entry["dataset_name"], entry["answers"], text))})
    return rows


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of right answers, as OCRBench reports them: of all (1000 in the official file) and by group and type."""
    parts: dict[str, list[int]] = {}
    for row in rows:
        for name in dict.fromkeys((GROUPS.get(row["type"], row["type"]), row["type"])):
            parts.setdefault(name, []).append(row["result"])
    right = sum(row["result"] for row in rows)
    figures = {name: {"right": sum(results), "samples": len(results)} for name, results in parts.items()}
    return {"score": right, "samples": len(rows), "accuracy": percent(right, len(rows)), "parts": figures}


@register("ocrbench")
class OcrBench(Task):
    folder = "OCRBench"
    source = "https://github.com/Yuliang-Liu/MultimodalOCR (OCRBench.json and OCRBench_Images.zip)"
    splits = {"test": Split({QUESTIONS: "questions and answers", IMAGES: "pictures"}, QUESTIONS, IMAGES)}

    def read(self, home: Path, part: Split) -> Sequence[Example]:
        return read_questions(home / part.questions, home / part.images)

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return figures_of(judged(read_entries(data / self.folder / QUESTIONS, FIELDS), answers))

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        given, entries = by_question(answers), enumerate(read_entries(data / self.folder / QUESTIONS, FIELDS))
        asked = [(entry, given[str(number)]) for number, entry in entries if str(number) in given]
        right = [is_right(entry["dataset_name"], entry["answers"], row["text"]) for entry, row in asked]
        truths = [[each] if isinstance(each := entry["answers"], str) else each for entry, _ in asked]
        return [Sample(float(hit), [row], own) for hit, (_, row), own in zip(right, asked, truths, strict=True)]

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path:
        path = stem.with_name(stem.name + ".json")
        write_json(path, judged(read_entries(data / self.folder / QUESTIONS, FIELDS), answers))
        return path
