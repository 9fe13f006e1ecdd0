"""DART: keep the visual tokens that duplicate the others least (arXiv 2502.11494).

`prune(model, config)` drops tokens in a model's forwards and returns a `PruneHandle`, whose `last` is a `PruneReport`.
`select` is the method alone, on tensors. `DartConfig` has the settings; `strategies` has the other methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dart import strategies
    from dart.config import DartConfig
    from dart.engine.attach import PruneHandle, handle_of, prune
    from dart.engine.selection import select
    from dart.report import PruneReport

__version__ = "0.2.0"

__all__ = ["DartConfig", "PruneHandle", "PruneReport", "handle_of", "prune", "select", "strategies"]

# Imported when they are first used: torch takes a second or two, which `import dart` and `--help` need not wait for.
_HOMES = {
    "DartConfig": "dart.config",
    "PruneHandle": "dart.engine.attach",
    "PruneReport": "dart.report",
    "handle_of": "dart.engine.attach",
    "prune": "dart.engine.attach",
    "select": "dart.engine.selection",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dart' has no attribute {name!r}")
    home = _HOMES.get(name)
    value = getattr(importlib.import_module(home), name) if home else importlib.import_module(f"dart.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
