"""Circular evaluation: a multiple-choice question counts when it is answered right in every rotation of its options."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers, percent
from llava.eval.engine.choices import choice_of

OPTIONS = "ABCD"
ROTATION = 1_000_000  # rows index + k * ROTATION are the same question with its options rotated

Row = Mapping[str, Any]


def has_rotations(rows: Sequence[Row]) -> bool:
    return any(row["index"] >= ROTATION for row in rows)


def chosen(answer: Row) -> str | None:
    """The option (its letter before rotation) that an answer means, or None."""
    letter = choice_of(answer["text"], dict(zip(OPTIONS, answer["options"], strict=False)))
    return None if letter is None else answer["option_char"][OPTIONS.index(letter)]


def score_answers(rows: Sequence[Row], answers: Answers) -> dict[str, Any]:
    """Percentages: circular (`score`) and of the unrotated questions alone, by ability where the table has them.

    Raises UserError for a question without an answer or a table without answers.
    """
    given: dict[int, list[Row]] = defaultdict(list)
    for answer in answers:
        given[int(answer["question_id"])].append(answer)
    circular: dict[int, list[bool]] = defaultdict(list)
    first: dict[int, bool] = {}
    abilities: dict[int, str] = {}
    unread = 0
    for row in rows:
        index = row["index"]
        if index not in given:
            raise UserError(f"MMBench question {index} has no answer; finish the run before scoring it")
        if row.get("answer") is None:
            raise UserError(f"MMBench question {index}: the table has no answers; only dev tables are scored here")
        abilities.setdefault(index % ROTATION, row.get("l2-category") or row.get("category") or "all")
        for answer in given[index]:
            letter = chosen(answer)
            unread += letter is None
            hit = letter == row["answer"]
            circular[index % ROTATION].append(hit)
            if index < ROTATION and answer["round_id"] == 0:
                first[index] = hit
    groups: dict[str, list[bool]] = defaultdict(list)
    for key, hits in circular.items():
        groups[abilities[key]].append(all(hits))
    whole = [hit for hits in groups.values() for hit in hits]
    return {
        "score": percent(sum(whole), len(whole)),
        "vanilla": percent(sum(first.values()), len(first)),
        "samples": len(whole),
        "not_read": unread,
        "abilities": {n: {"circular": percent(sum(h), len(h)), "samples": len(h)} for n, h in sorted(groups.items())},
    }
