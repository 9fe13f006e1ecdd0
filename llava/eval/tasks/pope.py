"""POPE: is there an X in the image? Accuracy, precision, recall, F1 and share of Yes for three kinds of absent X."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers, all_lines, by_question, read_lines
from llava.eval.tasks.base import Sample, Split, Task, register

QUESTIONS, IMAGES, ANNOTATIONS = "llava_pope_test.jsonl", "val2014", "coco"
CATEGORIES = ("random", "popular", "adversarial")
NO_WORDS = {"No", "not", "no"}


def says_yes(text: str) -> bool:
    """LLaVA's rule: the first sentence without commas; No, not or no as a word means no, all else yes."""
    return not NO_WORDS & set(text.split(".")[0].replace(",", "").split(" "))


def figures(answers: list[bool], labels: list[bool]) -> dict[str, float]:
    """Percentages of one category; Yes is the positive class."""
    pairs = list(zip(answers, labels, strict=True))
    tp, fp = sum(a and b for a, b in pairs), sum(a and not b for a, b in pairs)
    fn, tn = sum(b and not a for a, b in pairs), sum(not a and not b for a, b in pairs)
    precision, recall = tp / max(1, tp + fp), tp / max(1, tp + fn)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    shares = {
        "accuracy": (tp + tn) / max(1, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes": (tp + fp) / max(1, len(pairs)),
    }
    return {k: round(100 * v, 2) for k, v in shares.items()} | {"samples": len(pairs)}


def labels_of(annotation_dir: Path, questions: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """category -> question id -> annotation. Labels belong to a category's questions in order, as in LLaVA's files.

    Raises UserError for a missing annotation, or one for another number of questions.
    """
    asked: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for question in read_lines(questions):
        asked.setdefault(question["category"], []).append(str(question["question_id"]))
    labels = {}
    for category in CATEGORIES:
        path = annotation_dir / f"coco_pope_{category}.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist; expected POPE's annotation of the category {category}")
        truth, ids = all_lines(path), asked[category]
        if ids and len(ids) != len(truth):
            raise UserError(f"POPE {category}: {len(ids)} questions for {len(truth)} labels; get both files again")
        labels[category] = dict(zip(ids, truth, strict=False))
    return labels


def is_yes(category: str, row: Mapping[str, Any], label: Mapping[str, Any]) -> bool:
    """The label of an answered question. Raises UserError when it is another question's."""
    if not row["prompt"].startswith(label["text"]):
        raise UserError(
            f"POPE {category}: question {row['question_id']} asks {row['prompt']!r} where the annotation "
            f"has {label['text']!r}; are they of the same release?"
        )
    return bool(label["label"] == "yes")


def score_answers(annotation_dir: Path, questions: Path, answers: Answers) -> dict[str, Any]:
    """Figures by category; the headline is the mean F1. A category without answers is left out.

    Raises UserError when labels and questions do not fit, or answers are missing.
    """
    by_id = {str(row["question_id"]): row for row in answers}
    result: dict[str, Any] = {}
    for category, labels in labels_of(annotation_dir, questions).items():
        own = [(by_id[key], label) for key, label in labels.items() if key in by_id]
        if not own:
            continue
        if len(own) != len(labels):
            raise UserError(
                f"POPE {category}: {len(own)} answers for {len(labels)} labels; finish the run before scoring it"
            )
        truth = [is_yes(category, row, label) for row, label in own]
        result[category] = figures([says_yes(row["text"]) for row, _ in own], truth)
    if not result:
        raise UserError("no answer belongs to a POPE category; are answers and questions of the same benchmark?")
    means = {k: round(sum(r[k] for r in result.values()) / len(result), 2) for k in ("f1", "accuracy")}
    return {"score": means["f1"], "accuracy": means["accuracy"], "categories": result}


@register("pope")
class Pope(Task):
    folder = "pope"
    source = (
        "https://github.com/AoiDragon/POPE (output/coco), COCO val2014 pictures "
        "and LLaVA's eval.zip (the question file)"
    )
    splits = {
        "test": Split({QUESTIONS: "questions", IMAGES: "pictures", ANNOTATIONS: "annotations"}, QUESTIONS, IMAGES)
    }

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        home = data / self.folder
        return score_answers(home / ANNOTATIONS, home / QUESTIONS, answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        home, by_id = data / self.folder, by_question(answers)
        found = []
        for category, labels in labels_of(home / ANNOTATIONS, home / QUESTIONS).items():
            for row, label in ((by_id[key], label) for key, label in labels.items() if key in by_id):
                hit = says_yes(row["text"]) == is_yes(category, row, label)
                found.append(Sample(float(hit), [row], [label["label"]]))
        return found
