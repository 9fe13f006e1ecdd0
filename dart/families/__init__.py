"""Model families: every module in this folder that defines a `@register`ed family is found."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from torch import nn

from dart.families.base import FAMILIES, Family, register

__all__ = ["Family", "family_of", "register"]
GENERIC = Family()


def family_of(model: nn.Module) -> Family:
    """The family of a model: its own file's, or the generic one for a model with placeholder tokens.

    Raises TypeError for a model that has neither, ValueError for a family that cannot be pruned, with the reason.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    family = FAMILIES.get(str(model_type), GENERIC)
    if family.refused is not None:
        raise ValueError(f"dart cannot prune {type(model).__name__} (model type {model_type}): {family.refused}")
    if family is GENERIC and (config is None or not family.visual_ids(model)):
        raise TypeError(
            f"dart.prune does not know {type(model).__name__}: its config names no placeholder token for images or "
            f"videos; families with files of their own: {', '.join(sorted(FAMILIES))}"
        )
    return family
