"""One evaluation on several processes (`accelerate launch`, torchrun, srun: RANK and WORLD_SIZE in the environment).

Every process answers every n-th question into a part file of its own beside the answers file. Whoever finishes last
merges the parts, in the order of the questions; the processes never wait for one another, so one that dies loses
nothing and holds up nobody: the same command, with any number of processes, answers the rest.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart.utils import UserError, write_json
from llava.eval.engine.answers import (
    Key,
    check_settings,
    key_of,
    key_of_row,
    parse_line,
    read_lines,
    settings_file,
    write_lines,
)
from llava.eval.engine.examples import Example


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of the run."""

    index: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Raises UserError for a rank that is none."""
        words = {name: os.environ.get(name) or default for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
        words["LOCAL_RANK"] = os.environ.get("LOCAL_RANK") or words["RANK"]
        try:
            index, count, local = (int(words[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        except ValueError:
            index, count, local = -1, 0, 0
        if not 0 <= index < count:
            found = ", ".join(f"{name}={value}" for name, value in words.items())
            raise UserError(f"the environment's {found} is no place among processes; unset it or use accelerate launch")
        return cls(index, count, local)

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        """This process's examples: by the place of the question in the list, whatever is answered already."""
        places: dict[Key, int] = {}
        return [
            example
            for example in examples
            if places.setdefault(key_of(example.question_id, example.prompt), len(places)) % self.count == self.index
        ]

    def part(self, answers: Path) -> Path:
        """The file that this process writes: `answers` itself when it is alone."""
        if self.count == 1:
            return answers
        return answers.with_name(f"{answers.name}.part{self.index}of{self.count}")


ALONE = Ranks()


def parts_of(answers: Path) -> list[Path]:
    """The part files beside an answers file, of whatever number of processes."""
    return sorted(p for p in answers.parent.glob(f"{answers.name}.part*of*") if p.name.rpartition("of")[2].isdigit())


def failures_file(answers: Path) -> Path:
    """Where the questions are listed that the writer of `answers` (a file or a part) could not ask."""
    return answers.with_name(f"{answers.name}.failed")


def write_failures(answers: Path, rows: Sequence[Mapping[str, Any]], keep: bool = False) -> None:
    """Write the list of every question that its writer could not ask; no list without any.

    rows: question_id, prompt, error and picture, the image's `content_of`. A question that failed before keeps the
    picture of that time, on which the settings rest. keep: also earlier ones, without an error: they are asked again or
    answered, and the settings of other processes' files rest on them until all is merged.
    """
    earlier = _failures(answers)
    now = {key_of(row["question_id"], row["prompt"]): row for row in rows}
    rows = [row | {"picture": earlier.get(key, row).get("picture")} for key, row in now.items()]
    rows += [row | {"error": None} for key, row in earlier.items() if keep and key not in now]
    if rows:
        write_lines(failures_file(answers), rows)
    else:
        failures_file(answers).unlink(missing_ok=True)


def _failures(answers: Path) -> dict[Key, dict[str, Any]]:
    """The rows of one writer's list, by question."""
    path = failures_file(answers)
    return {key_of_row(row, path): row for row in (read_lines(path) if path.is_file() else ())}


def failed_so_far(answers: Path) -> dict[Key, dict[str, Any]]:
    """The failures of an answers file's writer and of those of its parts: rows as in `write_failures`, by question."""
    return {key: row for path in (answers, *parts_of(answers)) for key, row in _failures(path).items()}


def _lines(path: Path) -> Iterator[tuple[Key, bytes]]:
    """Whole lines with their keys; a last one that is being written (or was, when its writer died) is left out."""
    data = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(keepends=True), 1):
        row = parse_line(line, path, number)
        if row is not None:
            yield key_of_row(row, path), line


def answered(answers: Path) -> dict[Key, deque[bytes]]:
    """All answers there are, by question, as the lines of the answers file and of its parts."""
    found: dict[Key, deque[bytes]] = defaultdict(deque)
    for path in (answers, *parts_of(answers)):
        for key, line in _lines(path):
            found[key].append(line)
    return found


def answers_so_far(answers: Path, settings: dict[str, Any]) -> Counter[Key]:
    """How often each question is answered so far. Raises UserError for answers of other settings."""
    with _lock(answers):
        for path in (answers, *parts_of(answers)):
            if path.is_file() and path.stat().st_size:
                check_settings(path, settings)
        return Counter({key: len(lines) for key, lines in answered(answers).items()})


def merge(answers: Path, examples: Sequence[Example], settings: dict[str, Any]) -> bool:
    """Write `answers` from its parts when every example is answered, and remove them; did this call do it?

    Safe to call from every process at any time: one of them does it.
    """
    with _lock(answers):
        parts, found = parts_of(answers), answered(answers)
        lines = []
        for example in examples:
            own = found[key_of(example.question_id, example.prompt)]
            if not own:
                return False
            lines.append(own.popleft())
        if not parts:
            return False
        temporary = answers.with_name(f".{answers.name}.merging")
        temporary.write_bytes(b"".join(lines))
        os.replace(temporary, answers)
        write_json(settings_file(answers), settings)
        remove(*parts)
        return True


def remove(*paths: Path) -> None:
    """Delete answers files (or parts of one), and the settings and lists of failures beside them."""
    for path in paths:
        path.unlink(missing_ok=True)
        failures_file(path).unlink(missing_ok=True)
        settings_file(path).unlink(missing_ok=True)


@contextmanager
def _lock(answers: Path) -> Iterator[None]:
    answers.parent.mkdir(parents=True, exist_ok=True)
    with answers.with_name(f".{answers.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
