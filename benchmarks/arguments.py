"""Types of the benchmarks' command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import torch


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


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


def device_of(name: str | None) -> torch.device:
    """The device of that name; None: CUDA where there is one. Raises ValueError for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}, but torch sees no CUDA device: use --device cpu")
    return torch.device(name)
