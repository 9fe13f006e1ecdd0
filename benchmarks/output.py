"""How a benchmark ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dart.utils import write_json


def publish(result: dict[str, Any], out: str | None) -> None:
    """Write the result to the file `out`, if one is named, and print it as the last line."""
    if out:
        write_json(Path(out), result)
    print(json.dumps(result))


def print_table(rows: list[dict[str, Any]], width: int = 15) -> None:
    """The rows in columns, under their keys."""
    for values in [list(rows[0]), *(list(row.values()) for row in rows)]:
        print("".join(str(value).ljust(width) for value in values).rstrip(), flush=True)
