"""Q-Bench (perception, LLVisionQA) and its Chinese twin: up to four options about low-level looks, lettered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers, answer_to, by_question, percent, write_lines
from llava.eval.engine.choices import LETTERS, choice_of
from llava.eval.engine.examples import Example
from llava.eval.tasks.base import Sample, Split, Task, read_entries, register

NAME = "Q-Bench"
IMAGES = "images_llvisionqa"
FIELDS = ("img_path", "question", "candidates")
# The Chinese one has a backslash where a line break was meant: LLaVA sends it, and its published figures rest on it.
REQUESTS = {"en": "\nChoose between one of the options as follows:\n", "zh": "\\在下列选项中选择一个:\n"}
TYPES = {0: "yes-or-no", 1: "what", 2: "how"}
CONCERNS = {0: "distortion", 1: "other", 2: "in-context distortion", 3: "in-context other"}
SERVER = "https://github.com/Q-Future/Q-Bench (option 1: submit results)"


def read_questions(path: Path, images: Path, lang: str) -> list[Example]:
    """LLaVA's prompts; lang: "en" or "zh". Question ids are places in the file, from 0. Raises UserError."""
    examples = []
    for number, entry in enumerate(read_entries(path, FIELDS)):
        options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, entry["candidates"], strict=False))
        examples.append(Example(number, entry["question"] + REQUESTS[lang] + options, images / entry["img_path"]))
    return examples


def option_of(text: str, candidates: Sequence[str]) -> str | None:
    """The option that an answer means: its letter, or its text; None when neither is clear."""
    exact = [option for option in candidates if option.lower() == text.strip().rstrip(".。").lower()]
    if len(exact) == 1:
        return exact[0]
    options = dict(zip(LETTERS, candidates, strict=False))
    letter = choice_of(text, options)
    return options[letter] if letter else None


def score_answers(entries: Sequence[Mapping[str, Any]], answers: Answers) -> dict[str, Any]:
    """Percentages over all questions and by type and concern. Raises UserError when an answer is missing."""
    given = by_question(answers)
    right: dict[str, list[bool]] = defaultdict(list)
    unread = 0
    for number, entry in enumerate(entries):
        text = answer_to(given, number, NAME)
        if "correct_ans" not in entry:
            raise UserError(f"Q-Bench question {number} has no correct_ans; only the dev file can be scored here")
        chosen = option_of(text, entry["candidates"])
        unread += chosen is None
        parts = [TYPES.get(entry.get("type", -1)), CONCERNS.get(entry.get("concern", -1))]
        for name in ["all", *(part for part in parts if part)]:
            right[name].append(chosen == entry["correct_ans"])
    whole = right.pop("all", [])
    figures = {n: {"accuracy": percent(sum(r), len(r)), "samples": len(r)} for n, r in right.items()}
    return {"score": percent(sum(whole), len(whole)), "samples": len(whole), "not_read": unread, "parts": figures}


def write_submission(entries: Sequence[Mapping[str, Any]], answers: Answers, path: Path) -> None:
    """JSON lines: every entry with its `response`. Raises UserError for a missing answer."""
    given = by_question(answers)
    write_lines(path, [{**entry, "response": answer_to(given, k, NAME)} for k, entry in enumerate(entries)])


def _splits(**files: str) -> dict[str, Split]:
    return {
        name: Split({f: "questions", IMAGES: "pictures"}, f, IMAGES, SERVER if name == "test" else "")
        for name, f in files.items()
    }


class QBenchBase(Task):
    folder = "qbench"
    source = "https://huggingface.co/datasets/nanyangtu/LLVisionQA-QBench"
    max_new_tokens = 1024
    conv_mode = "llava_v1"  # as LLaVA asks it
    lang: str

    def read(self, home: Path, part: Split) -> Sequence[Example]:
        return read_questions(home / part.questions, home / part.images, self.lang)

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return score_answers(self._entries(data, split), answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        given, entries = by_question(answers), enumerate(self._entries(data, split))
        asked = [(entry, given[str(number)]) for number, entry in entries if str(number) in given]
        right = [option_of(row["text"], entry["candidates"]) == entry["correct_ans"] for entry, row in asked]
        return [
            Sample(float(hit), [row], [entry["correct_ans"]]) for hit, (entry, row) in zip(right, asked, strict=True)
        ]

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path:
        path = stem.with_name(stem.name + ".jsonl")
        write_submission(self._entries(data, split), answers, path)
        return path

    def _entries(self, data: Path, split: str | None) -> list[dict[str, Any]]:
        return read_entries(data / self.folder / self.splits[self.split(data, split)].questions, FIELDS)


@register("qbench")
class QBench(QBenchBase):
    lang = "en"
    splits = _splits(dev="llvisionqa_dev.json", test="llvisionqa_test.json")


@register("qbench_zh")
class QBenchZh(QBenchBase):
    lang = "zh"
    splits = _splits(dev="质衡-问答-验证集.json", test="质衡-问答-测试集.json")
