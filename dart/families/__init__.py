"""Model families: every module in this folder that defines a `@register`ed adapter is found."""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

from dart.families.base import ADAPTERS, Adapter, register

__all__ = ["Adapter", "adapter_for", "register"]


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of the model's family. Raises TypeError listing the supported ones."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for adapter in ADAPTERS.values():
        if adapter.matches(model):
            return adapter
    raise TypeError(
        f"dart.prune does not know {type(model).__name__}; supported families: {', '.join(sorted(ADAPTERS))}"
    )
