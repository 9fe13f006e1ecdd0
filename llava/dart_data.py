"""LLaVA's benchmarks for `python -m dart.compare`: an entry point of the group `dart.data`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dart.compare.data import DataSet, Sample
from dart.utils import UserError
from llava.eval import tasks
from llava.files import EMBEDDED_DATA

LABEL = "sample"  # the field of an answer's row that holds its sample's id


def data_sets() -> dict[str, Any]:
    """name -> open(folder), for every benchmark; folder None: the embedded ones."""
    return {name: partial(open_benchmark, name) for name in tasks.available()}


class Benchmark:
    """The first installed part of a benchmark, its questions by the ids of their samples.

    Raises UserError for files that are missing, and for a part that a server scores.
    """

    def __init__(self, name: str, folder: Path | None):
        if folder is None and not EMBEDDED_DATA.is_dir():
            raise UserError(
                f"data set {name}: the embedded one comes with the repository and not with the installed package: give "
                f"{name}=FOLDER, the folder that holds the benchmarks' folders"
            )
        self.task, self.data = tasks.get(name), folder or EMBEDDED_DATA
        self.split = self.task.split(self.data)
        if server := self.task.splits[self.split].server:
            raise UserError(f"data set {name}: the part that is installed, {self.split}, is scored by {server}")
        examples = self.task.examples(self.data, self.split)
        self.examples = {f"{number}:{e.question_id}": e for number, e in enumerate(examples)}

    def _rows(self, texts: Mapping[str, str]) -> list[dict[str, Any]]:
        asked = ((self.examples[label], label, text) for label, text in texts.items())
        return [
            {"question_id": e.question_id, "prompt": e.prompt, "text": text, **e.fields, LABEL: label}
            for e, label, text in asked
        ]

    def counted(self, texts: Mapping[str, str]) -> list[Any]:
        """The benchmark's samples of these answers (sample id -> text)."""
        with self.task.in_official_form(self.data):
            return self.task.samples(self.data, self._rows(texts), self.split)

    def grade(self, texts: Mapping[str, str]) -> dict[str, float]:
        return {row[LABEL]: sample.score for sample in self.counted(texts) for row in sample.answers}

    def official(self, texts: Mapping[str, str]) -> float:
        """The benchmark's headline figure from the answers to all its questions."""
        with self.task.in_official_form(self.data):
            return float(self.task.score(self.data, self._rows(texts), self.split)["score"])


def open_benchmark(name: str, folder: Path | None) -> DataSet:
    """A benchmark's questions about images, graded by its own rule.

    Raises UserError for files that are missing, and for benchmarks that are graded on a server or by a judge.
    """
    benchmark = Benchmark(name, folder)
    known = benchmark.counted(dict.fromkeys(benchmark.examples, ""))
    shown = {row[LABEL]: (unit, sample.references) for unit, sample in enumerate(known) for row in sample.answers}
    samples = []
    for label, example in benchmark.examples.items():
        if label in shown and example.image is not None:
            unit, references = shown[label]
            once = list(dict.fromkeys(references))
            samples.append(Sample(label, example.text, [example.image], [], once, str(unit)))
    without = len(benchmark.examples) - len(samples)
    note = f"{without} questions without an image, or that do not count, left out" if without else ""
    official = None if without else benchmark.official
    return DataSet(name, samples, benchmark.grade, benchmark.task.max_new_tokens, official, note)
