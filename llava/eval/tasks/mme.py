"""MME: two Yes/No questions per image; accuracy and accuracy+ (both right) per subtask, 0 to 200."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers
from llava.eval.tasks.base import Sample, Split, Task, register

QUESTIONS, IMAGES = "llava_mme.jsonl", "MME_Benchmark_release_version"
GROUPS = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
ANSWER_PREFIX = 4  # MME's rule looks at the first characters alone
SUFFIX = "\nAnswer the question using a single word or phrase."

Truth = dict[tuple[str, str, str], str]


def read_truth(folder: Path) -> Truth:
    """(subtask, image's stem, question) -> Yes or No, from both of MME's folder layouts."""
    truth: Truth = {}
    for subtask in sorted(p for p in folder.iterdir() if p.is_dir()):
        annotations = subtask / "questions_answers_YN"
        for path in sorted((annotations if annotations.is_dir() else subtask).glob("*.txt")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                question, tab, answer = line.rpartition("\t")
                if not tab:
                    raise UserError(f"{path} line {number} has no tab between question and answer")
                truth[subtask.name, path.stem, _plain(question)] = answer.strip()
    return truth


def _plain(question: str) -> str:
    return " ".join(question.split())


def read_yes_no(text: str) -> str:
    """MME's rule: yes or no when that is the answer or among its first four characters, else other."""
    lowered = text.lower().strip()
    if lowered in ("yes", "no"):
        return lowered
    head = lowered[:ANSWER_PREFIX]
    return "yes" if "yes" in head else "no" if "no" in head else "other"


def is_right(truth: str, text: str) -> bool:
    return read_yes_no(text) == truth.lower()


def truth_of(truth: Truth, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(subtask, image, Yes or No) of an answer. Raises UserError when MME does not have the question."""
    subtask, _, picture = str(row["question_id"]).partition("/")
    stem = Path(picture).stem
    question = _plain(row["prompt"].removesuffix(SUFFIX))
    for form in (question, f"{question} Please answer yes or no."):
        if (subtask, stem, form) in truth:
            return subtask, stem, truth[subtask, stem, form]
    raise UserError(
        f"MME has no question {question!r} for {row['question_id']}; are answers and pictures of the same release?"
    )


def score_rows(rows: list[tuple[str, str, str, str]]) -> dict[str, Any]:
    """rows: (subtask, image, truth, answer text). Subtasks that were not run are listed, not counted as zero."""
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for subtask, picture, truth, text in rows:
        pictures[subtask][picture].append(is_right(truth, text))
    subtasks = {}
    for name, groups in pictures.items():
        right = [r for rs in groups.values() for r in rs]
        accuracy = 100 * sum(right) / len(right)
        plus = 100 * sum(all(rs) for rs in groups.values()) / len(groups)
        subtasks[name] = {
            "accuracy": round(accuracy, 2),
            "accuracy_plus": round(plus, 2),
            "score": round(accuracy + plus, 2),
            "samples": len(right),
        }
    totals = {g: round(sum(subtasks[n]["score"] for n in names if n in subtasks), 2) for g, names in GROUPS.items()}
    missing = [n for names in GROUPS.values() for n in names if n not in subtasks]
    correct = sum(s["accuracy"] * s["samples"] for s in subtasks.values()) / max(1, len(rows))
    return {
        "score": round(sum(totals.values()), 2),
        "accuracy": round(correct, 2),
        **totals,
        "subtasks": subtasks,
        "not_run": missing,
    }


@register("mme")
class Mme(Task):
    folder = "MME"
    source = (
        "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (MME) "
        "and LLaVA's eval.zip (the question file)"
    )
    splits = {"test": Split({QUESTIONS: "questions", IMAGES: "pictures and answers"}, QUESTIONS, IMAGES)}

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        truth = read_truth(data / self.folder / IMAGES)
        return score_rows([(*truth_of(truth, row), row["text"]) for row in answers])

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        truth = read_truth(data / self.folder / IMAGES)
        asked = [(truth_of(truth, row)[2], row) for row in answers]
        return [Sample(float(is_right(label, row["text"])), [row], [label]) for label, row in asked]
