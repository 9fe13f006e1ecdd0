"""The contract of a benchmark: where its examples are, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llava.cli_errors import UserError


@dataclass(frozen=True)
class ExampleFiles:
    """What the loop reads: LLaVA's question file and the folder of pictures."""

    questions: Path
    images: Path


class Task(Protocol):
    """One benchmark in its official layout below a data folder."""

    source: str
    max_new_tokens: int

    def examples(self, data: Path) -> ExampleFiles:
        """The benchmark's files. Raises UserError naming what is missing."""
        ...

    def score(self, data: Path, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures of an answers file; `score` is the headline, in the benchmark's unit."""
        ...


TASKS: dict[str, Task] = {}


def register(name: str) -> Callable[[type], type]:
    def add(cls: type) -> type:
        if name in TASKS:
            raise ValueError(f"benchmark {name!r} is already registered by {type(TASKS[name]).__module__}")
        TASKS[name] = cls()
        return cls

    return add


def require(folder: Path, paths: dict[str, str], source: str) -> None:
    """Raise one clear error for everything that a benchmark folder lacks. paths: relative path -> what it is."""
    missing = [f"{path} ({what})" for path, what in paths.items() if not (folder / path).exists()]
    if missing:
        raise UserError(f"benchmark folder {folder} lacks {', '.join(missing)}; get it from {source}")
