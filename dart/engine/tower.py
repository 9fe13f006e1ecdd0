"""Signals of the vision tower, captured by hooks while it runs. Filled in for the strategies that need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dart.engine.attach import PruneHandle

SIGNALS = frozenset({"grid", "tower_features", "tower_keys", "tower_attention"})


class Tower:
    """What a strategy needs of the model's vision tower. needed: names of signals; empty for most strategies."""

    def __init__(self, handle: PruneHandle):
        self.handle = handle
        self.needed = handle.selectors[0].strategy.needs & SIGNALS

    def attach(self, hook: Any) -> None:
        """Put the hooks on that the needed signals take."""

    def __call__(self, name: str, forward: Any, spans: Any) -> list[Any]:
        """The signal per sample."""
        raise ValueError(name)
