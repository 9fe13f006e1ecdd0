"""Types of the benchmarks' command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any


def natural(text: str, least: int = 0) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a number of {least} or more, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    return natural(text, 1)


def budget(text: str) -> int | float:
    """Tokens, or a share of them."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected tokens (320) or a share (0.111), got {text!r}") from None


def list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between them."""
    return lambda text: [kind(part) for part in text.split(",")]


def check_known(option: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for values that are not `known`."""
    if wrong := [value for value in values if value not in known]:
        raise ValueError(f"{option} must be of {', '.join(known)}, got {', '.join(wrong)}")
