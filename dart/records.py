"""JSON-lines files that survive a kill at any moment, and the settings that their rows were made with."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from dart.utils import SURROGATE, UserError, is_text, read_json, write_json, write_text

REMEDY = "choose another --answers-file or start over with --overwrite"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file. Raises UserError naming the number of a broken line."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            row = parse_line(line, path, number)
            if row is not None:
                yield row


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON-lines file, replaced in one step."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any] | None:
    """The row of one line, None for an empty one. Raises UserError naming a broken line."""
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also of bytes that are no text
        raise UserError(f"{path} line {number} is no JSON ({error}); repair or remove the line") from error
    if SURROGATE in line.lower() and not is_text(row):
        raise UserError(f"{path} line {number} has half a character (a lone \\ud800 to \\udfff); repair the line")
    if not isinstance(row, dict):
        raise UserError(f"{path} line {number} must be a JSON object, got {type(row).__name__}")
    return row


def settings_file(answers: Path) -> Path:
    """Where the settings of an answers file are written down."""
    return answers.with_name(f"{answers.name}.meta.json")


def check_settings(answers: Path, settings: dict[str, Any], remedy: str = REMEDY) -> None:
    """Raise UserError, naming what differs, when earlier answers were made with other settings, or unknown ones.

    remedy: what the user may do about it.
    """
    meta = settings_file(answers)
    if not meta.is_file():
        raise UserError(f"{answers} holds answers but not what they were made with ({meta.name}); {remedy}")
    if changed := list(_differences(read_json(meta), settings)):
        raise UserError(f"{answers} holds answers of another run ({'; '.join(changed)}); {remedy}")


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What changed, field by field of nested objects."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name}: {before!r} there, {now!r} now"


class JsonLines:
    """An append-only file of JSON lines with one writer; what a kill leaves half-written is cut at the next start.

    Raises UserError for what is no regular file, or when another process writes it.
    """

    def __init__(self, path: Path):
        check_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._file = path, path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{path} is being written by another process; wait or choose another file") from error
        self._file.seek(0)
        data = self._file.read()
        if data and not data.endswith(b"\n"):
            self._file.truncate(data.rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)

    def append(self, row: Mapping[str, Any]) -> None:
        """Raises UserError on a full disk; then the file ends with the last whole row."""
        line, size = (json.dumps(row, ensure_ascii=False) + "\n").encode(), os.fstat(self._file.fileno()).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(size)
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); what is there stays: make room and run the same "
                "command again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class AnswersFile(JsonLines):
    """`settings` must equal those of the answers that are there already, else raises UserError."""

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool = False, remedy: str = REMEDY):
        super().__init__(path)
        if overwrite:
            self._file.truncate(0)
            settings_file(path).unlink(missing_ok=True)
        if path.stat().st_size:
            check_settings(path, settings, remedy)
        write_json(settings_file(path), settings)


def check_regular(path: Path) -> None:
    """Raises UserError for a folder, a device, a pipe: reading them back may never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file; choose another name")
