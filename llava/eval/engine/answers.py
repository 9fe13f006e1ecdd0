"""The rows of an answers file: keys, ids, look-ups. The file itself: `dart.records`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dart.records import AnswersFile as AnswersFile
from dart.records import JsonLines as JsonLines
from dart.records import check_regular as check_regular
from dart.records import check_settings as check_settings
from dart.records import parse_line as parse_line
from dart.records import read_lines as read_lines
from dart.records import settings_file as settings_file
from dart.records import write_lines as write_lines
from dart.utils import UserError

Key = tuple[str, str]
Answers = Sequence[Mapping[str, Any]]


def all_lines(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file to score or to convert. Raises UserError for a broken line and for no rows.

    Also for one whose `text` is no string: in all of LLaVA's files it is one.
    """
    rows = list(read_lines(path))
    if not rows:
        raise UserError(f"{path} has no rows: expected JSON lines; finish the run, or get the file again")
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row.get("text", ""), str)]:
        raise UserError(f"{path} row {wrong[0]}: text must be a string; repair the line")
    return rows


def key_of(question_id: Any, prompt: str) -> Key:
    """Several TextVQA questions share an id (their image's), so the prompt belongs to the key."""
    return str(question_id), prompt


def answer_id(question_id: Any, prompt: str, text: str) -> str:
    """A short id that depends on the content alone, so that equal runs write equal files."""
    return hashlib.sha256(f"{question_id}\n{prompt}\n{text}".encode()).hexdigest()[:22]


def key_of_row(row: dict[str, Any], path: Path) -> Key:
    """The question that a row of the answers file `path` answers. Raises UserError for a row that is no answer."""
    if "question_id" not in row or "prompt" not in row:
        raise UserError(f"{path} has a row without question_id and prompt; it is no answers file, choose another name")
    return key_of(row["question_id"], row["prompt"])


def by_question(answers: Answers) -> dict[str, Mapping[str, Any]]:
    """Answers by question id, as text: files differ in whether ids are numbers."""
    return {str(row["question_id"]): row for row in answers}


def answer_to(given: Mapping[str, Mapping[str, Any]], question_id: Any, benchmark: str) -> str:
    """The answer's text; given: see `by_question`. Raises UserError when there is none."""
    if str(question_id) not in given:
        raise UserError(f"{benchmark} question {question_id} has no answer; finish the run, then score or submit it")
    return str(given[str(question_id)]["text"])


def percent(part: float, whole: float) -> float:
    """100 * part / whole with two decimals; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0
