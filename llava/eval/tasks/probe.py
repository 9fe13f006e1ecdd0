"""Probe sets: made-up images whose answer-carrying tokens are known, written on first use; scored as TextVQA is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.engine.answers import Answers, read_lines
from llava.eval.engine.examples import Example
from llava.eval.probe.files import ANNOTATIONS, EVIDENCE, IMAGES, QUESTIONS, ensure
from llava.eval.probe.sets import SPLITS
from llava.eval.tasks import textvqa
from llava.eval.tasks.base import Split, Task, register
from llava.files import read_json

FILES = {QUESTIONS: "questions", IMAGES: "pictures", ANNOTATIONS: "annotations", EVIDENCE: "evidence tokens"}


def _split(name: str) -> Split:
    files = {f"{name}/{path}": what for path, what in FILES.items()}
    return Split(files, f"{name}/{QUESTIONS}", f"{name}/{IMAGES}")


@register("probe")
class Probe(Task):
    folder = "probe"
    source = "this benchmark itself: remove the folder, it is made again"
    splits = {name: _split(name) for name in SPLITS}
    max_new_tokens = 8

    def examples(self, data: Path, split: str | None = None) -> Sequence[Example]:
        """All questions of a split, which is made when it is not there yet."""
        name = self.split(data, split)
        ensure(data / self.folder, name)
        return super().examples(data, name)

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        home = data / self.folder / self.split(data, split)
        annotations, rows = read_json(home / ANNOTATIONS), defaultdict(list)
        stratum = {row["question_id"]: row["category"] for row in read_lines(home / QUESTIONS)}
        whole = textvqa.score_answers(annotations, answers)
        for row in answers:
            rows[stratum[row["question_id"]]].append(row)
        parts = {name: textvqa.score_answers(annotations, own) for name, own in sorted(rows.items())}
        strata = {name: {"accuracy": own["score"], "samples": own["samples"]} for name, own in parts.items()}
        return whole | ({"parts": strata} if len(strata) > 1 else {})
