"""The registry of strategies: every module in this folder that defines a `@register`ed class is found.

`available()` lists the names, `get(name)` returns a strategy, `@register("mine")` adds one (see CONTRIBUTING.md).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from dart.strategies.base import REGISTRY, Merge, Reduction, Stage, Strategy, Tokens, register

__all__ = ["Merge", "Reduction", "Stage", "Strategy", "Tokens", "available", "get", "register"]


def _load_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def available() -> list[str]:
    """Names of all registered strategies, sorted."""
    _load_all()
    return sorted(REGISTRY)


def get(name: str) -> Strategy:
    """The strategy of that name. Raises ValueError with the known names and the nearest one."""
    if name not in REGISTRY:
        _load_all()
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(str(name), REGISTRY, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"unknown strategy {name!r}{hint}; known: {', '.join(sorted(REGISTRY))}")


def in_model(name: str) -> Strategy:
    """The strategy of that name, for a command: it gives images to the processor as they are.

    Raises ValueError for an unknown one, and for one that wants other images.
    """
    strategy = get(name)
    if type(strategy).pixels is not Strategy.pixels:
        raise ValueError(
            f"strategy {name!r} changes images before the processor, which this command does not do: in your own code, "
            "give the processor `handle.prepare(images)`"
        )
    return strategy
