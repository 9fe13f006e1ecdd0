"""Reading files that a user brings, with errors that name them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED_MODEL, EMBEDDED_DATA = ROOT / "playground" / "models" / "llava-tiny", ROOT / "playground" / "data" / "mini"
WEIGHTS = ("config.json", "*.safetensors", "*.bin")
BLOCK_BYTES, BLOCKS = 1 << 20, 64


def fingerprint(folder: str | Path | None) -> str | None:
    """A hash that tells checkpoints apart without reading them whole; None for what is no folder.

    It covers the names and sizes of the weights' files, their bytes (of large ones, blocks all over them), the config.
    """
    if folder is None or not os.path.isdir(folder):
        return None
    digest, root = hashlib.sha256(), Path(folder)
    for path in sorted({path for pattern in WEIGHTS for path in root.rglob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root)} {size} ".encode())
        with path.open("rb") as file:
            for start in (*range(0, size, max(BLOCK_BYTES, size // BLOCKS)), max(0, size - BLOCK_BYTES)):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def read_json(path: str | Path) -> Any:
    """A JSON file's value. Raises FileNotFoundError for a missing file, ValueError for a broken one; both name it."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist")
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): get the file again") from error
