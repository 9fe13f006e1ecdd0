"""The research code's dictionary and switch.

`model.config.DART_config = {...}` prunes, `None` does not; it is read at every call.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dart.config import DartConfig
from dart.engine.attach import PruneHandle, handle_of, prune

SWITCH = "DART_config"
# The original's dictionary (`model.config.DART_config`) -> the fields below. Where an image's tokens are is a fact
# of each input, so the two image_token_* entries are accepted and not used.
ORIGINAL_FIELDS = {"K": "layer", "pivot_image_token": "image_pivots", "pivot_text_token": "text_pivots"}
ORIGINAL_BUDGETS = ("max_num_trunction", "reduction_ratio", "retain_token_num_for_llava_next")
ORIGINAL_IGNORED = ("image_token_start_index", "image_token_length")
ORIGINAL_SWITCH = "Sparse"
ORIGINAL_EXTRAS = ("pivot_order", "strategy", "scope", "exact", "seed")


def from_original(
    mapping: Mapping[str, Any], *, anyres: bool = False, ratio_first: bool = False, **overrides: Any
) -> DartConfig:
    """Read the research code's dictionary.

    A budget of None is absent; `max_num_trunction` wins over the ratio, as there; a budget of no kind means 128.

    anyres: the checkpoint is a LLaVA-NeXT one, where `retain_token_num_for_llava_next` is the budget
        and all tiles are one token group unless the mapping has a `scope`.
    ratio_first: for Qwen, where `reduction_ratio` is the budget whenever it is there.
    overrides: fields of `DartConfig` that win over the mapping's.

    Raises ValueError for a key that the research code does not have, and for `Sparse` that is not True; else what
    `DartConfig` raises.
    """
    known = {*ORIGINAL_FIELDS, *ORIGINAL_BUDGETS, *ORIGINAL_IGNORED, *ORIGINAL_EXTRAS, ORIGINAL_SWITCH}
    if unknown := sorted(set(mapping) - known):
        raise ValueError(f"DART_config has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if (switch := mapping.get(ORIGINAL_SWITCH, True)) is not True:
        raise ValueError(f"{ORIGINAL_SWITCH} must be True here, got {switch!r} (False: do not prune at all)")
    fields: dict[str, Any] = {new: mapping[old] for old, new in ORIGINAL_FIELDS.items() if old in mapping}
    fields |= {name: mapping[name] for name in ORIGINAL_EXTRAS if name in mapping}
    fields.setdefault("pivot_order", "original")
    if mapping.get("strategy", "dart") != "dart":
        fields.setdefault("exact", False)  # the dictionary states budgets as DART counts them
    if anyres:
        fields.setdefault("scope", "joint")
    retain = mapping.get("retain_token_num_for_llava_next")
    if anyres and retain is not None:
        fields["keep"] = retain
    elif ratio_first and mapping.get("reduction_ratio") is not None:
        fields["reduction_ratio"] = mapping["reduction_ratio"]
    elif mapping.get("max_num_trunction") is not None:
        fields["keep"] = mapping["max_num_trunction"]
    elif mapping.get("reduction_ratio") is not None:
        fields["reduction_ratio"] = mapping["reduction_ratio"]
    return DartConfig(**(fields | overrides))


class ConfigSwitch:
    """Before a model class of a family that `dart` knows. A family's budgets are read by `_read_dart_config`."""

    _dart_own: PruneHandle | None = None
    _dart_seen: dict[str, Any] | None = None

    @property
    def dart_handle(self) -> PruneHandle | None:
        """The active pruning, from `config.DART_config` or from the caller's `dart.prune`; None when off."""
        self._sync_dart()
        return self._dart_own or handle_of(self)  # type: ignore[arg-type]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._sync_dart()
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; the switch is not written into the checkpoint's config.json."""
        config: Any = self.config  # type: ignore[attr-defined]
        wanted = config.__dict__.pop(SWITCH, None)
        try:
            return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
        finally:
            setattr(config, SWITCH, wanted)

    def _read_dart_config(self, mapping: dict[str, Any]) -> DartConfig:
        return from_original(mapping)

    def _sync_dart(self) -> None:
        """Attach, change or remove DART as `config.DART_config` says. Raises ValueError / TypeError."""
        model: Any = self
        wanted = getattr(model.config, SWITCH, None)
        if wanted == self._dart_seen:
            return
        if wanted is not None and not isinstance(wanted, dict):
            raise TypeError(f"config.DART_config must be a dict or None, got {type(wanted).__name__}")
        if self._dart_own is not None:
            self._dart_own.remove()
        self._dart_own = self._dart_seen = None
        if wanted is None:
            return
        if wanted.get(ORIGINAL_SWITCH) is not False:
            self._dart_own = prune(model, self._read_dart_config(wanted))
        self._dart_seen = copy.deepcopy(wanted)


class QwenConfigSwitch(ConfigSwitch):
    """Before transformers' Qwen classes.

    The ratio is the budget, also beside `max_num_trunction`, as in the research code.
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers renames a published checkpoint's keys (`model.layers.*`) for its own classes alone."""
        return False

    def _read_dart_config(self, mapping: dict[str, Any]) -> DartConfig:
        return from_original(mapping, ratio_first=True)
