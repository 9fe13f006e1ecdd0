"""Benchmarks: every module in this folder that defines a `@register`ed task is found."""

from __future__ import annotations

import importlib
import pkgutil

from dart.utils import UserError
from llava.eval.tasks.base import TASKS, Task, register

__all__ = ["Task", "available", "get", "register"]


def available() -> list[str]:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(TASKS)


def get(name: str) -> Task:
    """The task of that name. Raises UserError with the known ones."""
    known = available()
    if name not in known:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    return TASKS[name]
