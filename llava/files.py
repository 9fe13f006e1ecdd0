"""Reading files that a user brings, with errors that name them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """A JSON file's value. Raises FileNotFoundError for a missing file, ValueError for a broken one; both name it."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist")
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): get the file again") from error
