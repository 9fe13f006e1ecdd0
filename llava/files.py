"""The embedded model and data, and reading files that a user brings, with errors that name them."""

from __future__ import annotations

from pathlib import Path

from dart.utils import fingerprint as fingerprint
from dart.utils import read_json as read_json

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED_MODEL, EMBEDDED_DATA = ROOT / "playground" / "models" / "llava-tiny", ROOT / "playground" / "data" / "mini"
