"""Printing and writing a scorer's figures: a table for people, one JSON object as the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dart.utils import write_json

UPLOADS = "answers_upload"


def parts_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Table rows of the figures' parts (POPE's categories, MME's subtasks), or the figures themselves."""
    for name, parts in figures.items():
        if isinstance(parts, dict) and parts and all(isinstance(part, dict) for part in parts.values()):
            return [{name: part, **values} for part, values in parts.items()]
    return [figures]


def emit(figures: dict[str, Any], rows: list[dict[str, Any]], out: str | None) -> None:
    """rows: the table, one dict a line with equal keys; out: also write the figures to this file."""
    if rows:
        names = list(rows[0])
        widths = [max(len(n), *(len(str(r[n])) for r in rows)) for n in names]
        for values in (names, *([r[n] for n in names] for r in rows)):
            print("  ".join(str(v).ljust(w) for v, w in zip(values, widths, strict=True)).rstrip())
    if out:
        write_json(Path(out), figures)
    print(json.dumps(figures, ensure_ascii=False))
