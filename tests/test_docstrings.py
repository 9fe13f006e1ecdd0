"""Every public function, class and method of `dart` says what it is for, or overrides one that does."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import dart

OF_A_TRAINER = ("train", "log", "compute_loss")  # transformers has them; the classes here stand before a Trainer's
MODULES = [each.name for each in pkgutil.walk_packages(dart.__path__, "dart.") if not each.name.endswith("__main__")]


def public(home: Any, module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module or class defines itself, by its qualified name."""
    for name, value in vars(home).items():
        found = value.fget if isinstance(value, property) else getattr(value, "__wrapped__", value)
        found = getattr(found, "func", getattr(found, "__func__", found))  # of a cached property, a class method
        if name.startswith("_") or name in OF_A_TRAINER or getattr(found, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(found) or inspect.isfunction(found):
            yield found.__qualname__, getattr(home, name)
        if inspect.isclass(found):
            yield from public(found, module)


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_has_a_docstring(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # an extra that is not installed
        pytest.skip(str(error))
    assert [qualified for qualified, value in public(module, module) if not inspect.getdoc(value)] == []
    assert module.__doc__
