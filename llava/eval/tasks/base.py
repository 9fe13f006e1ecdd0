"""The contract of a benchmark: what it asks, how answers are scored, what its server wants."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dart.utils import UserError, one_line
from llava.eval.engine.answers import Answers, all_lines
from llava.eval.engine.examples import Example, check_pictures, read_question_file
from llava.eval.engine.figures import UPLOADS, emit, parts_of
from llava.files import NOT_OFFICIAL, read_json


@dataclass(frozen=True)
class Split:
    """One part of a benchmark, such as val or test.

    files: what must be there, relative path -> what it is. questions: the question file; images: the folder of the
    images. server: where the score is made, for a part without public answers.
    """

    files: Mapping[str, str]
    questions: str
    images: str = ""
    server: str = ""


class Sample(NamedTuple):
    """A question as its benchmark counts it.

    score: 0 to 1; answers: the rows it is made of, several in MMBench. references: right answers, to be shown.
    """

    score: float
    answers: Answers
    references: Sequence[str]


class Task(ABC):
    """One benchmark in its official layout in the folder `folder` below a data folder.

    A new benchmark sets the class attributes and writes `score`; `read` and `upload` are for what differs from LLaVA's
    question file and for benchmarks with a server. splits: the first one that is installed is the default.
    max_new_tokens, conv_mode: the answer's length and the prompt's template where the flags do not say.
    """

    folder: str
    source: str
    splits: Mapping[str, Split]
    max_new_tokens = 128
    conv_mode = "vicuna_v1"

    def split(self, data: Path, name: str | None = None) -> str:
        """The split of that name, else the first that is installed. Raises UserError for an unknown name."""
        if name is not None and name not in self.splits:
            raise UserError(f"{self.folder} has no split {name!r}; known: {', '.join(self.splits)}")
        home = data / self.folder
        installed = (n for n, s in self.splits.items() if all((home / path).exists() for path in s.files))
        return name or next(installed, next(iter(self.splits)))

    def examples(self, data: Path, split: str | None = None) -> Sequence[Example]:
        """All questions. Raises UserError naming every file or the image that is missing."""
        home, part = data / self.folder, self.splits[self.split(data, split)]
        require(home, part.files, self.source)
        with self.in_official_form(data):
            examples = self.read(home, part)
            if not examples:
                raise UserError(f"{home / part.questions} has no questions; get it from {self.source}")
            check_pictures(examples, home, self.source)
        return examples

    @contextmanager
    def in_official_form(self, data: Path) -> Iterator[None]:
        """Around `read`, `score`, `samples`, `upload`: what a file of another form makes them raise is a UserError."""
        try:
            yield
        except NOT_OFFICIAL as error:
            raise UserError(
                f"a file in the benchmark folder {data / self.folder}, or the answers file, has not the official form "
                f"({type(error).__name__}: {one_line(error)}); get the benchmark from {self.source}"
            ) from error

    def read(self, home: Path, part: Split) -> Sequence[Example]:
        """The questions of a complete folder."""
        return read_question_file(home / part.questions, home / part.images)

    def complete(self, args: argparse.Namespace, data: Path, split: str) -> None:
        """Set what the loop's flags leave open (None); the question file, for what is printed."""
        args.question_file = str(data / self.folder / self.splits[split].questions)
        args.max_new_tokens = self.max_new_tokens if args.max_new_tokens is None else args.max_new_tokens
        args.conv_mode = self.conv_mode if args.conv_mode is None else args.conv_mode

    @abstractmethod
    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        """Figures of an answers file; `score` is the headline, in the benchmark's unit.

        Not called for a split with a server. Raises UserError for answers that are not the benchmark's.
        """

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        """The score of every question that has an answer, by the rule behind `score`; some may be missing.

        Raises UserError where no rule says whether one answer is right, and for answers that are not the benchmark's.
        """
        raise UserError(f"{self.folder} has no rule that scores a single answer: a judge rates them; leave it out")

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path | None:
        """Write the official submission file (`stem` with the server's suffix); None for benchmarks without."""
        return None

    def figures(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> dict[str, Any]:
        """The submission file and, where the answers are public, the score."""
        name = self.split(data, split)
        with self.in_official_form(data):
            written = self.upload(data, answers, stem, name)
            extra = {"submission": str(written)} if written is not None else {}
            if server := self.splits[name].server:
                return {"score": None, "samples": len(answers), "split": name, "server": server, **extra}
            return {**self.score(data, answers, name), **({"split": name} if len(self.splits) > 1 else {}), **extra}

    def finish(self, data: Path, answers_file: Path, split: str | None, out: str | None) -> None:
        """Score a finished answers file and print the figures, with the submission file in `answers_upload` beside it.

        out: a file to write the figures to.
        """
        stem = answers_file.parent / UPLOADS / answers_file.stem
        figures = self.figures(data, all_lines(answers_file), stem, split)
        emit(figures, parts_of(figures), out)


TASKS: dict[str, Task] = {}
TaskClass = TypeVar("TaskClass", bound=type[Task])


def register(name: str) -> Callable[[TaskClass], TaskClass]:
    def add(cls: TaskClass) -> TaskClass:
        if name in TASKS:
            raise ValueError(f"benchmark {name!r} is already registered by {type(TASKS[name]).__module__}")
        TASKS[name] = cls()
        return cls

    return add


def read_entries(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A benchmark's JSON list of questions. Raises UserError naming an entry that lacks one of the needed fields."""
    entries = read_json(path)
    for number, entry in enumerate(entries):
        if missing := [name for name in needed if name not in entry]:
            raise UserError(f"{path} question {number} lacks {', '.join(missing)}; get the file again")
    return entries


def require(folder: Path, paths: Mapping[str, str], source: str) -> None:
    """Raise one clear error for everything that a benchmark folder lacks. paths: relative path -> what it is."""
    missing = [f"{path} ({what})" for path, what in paths.items() if not (folder / path).exists()]
    if missing:
        raise UserError(f"benchmark folder {folder} lacks {', '.join(missing)}; get it from {source}")
