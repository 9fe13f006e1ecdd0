"""The research code's switch: `model.config.DART_config = {...}` prunes, `None` does not; read at every call."""

from __future__ import annotations

import copy
from typing import Any

from dart.config import ORIGINAL_SWITCH, DartConfig
from dart.families import adapter_for
from dart.pruner import ATTACHED, PruneHandle, prune

SWITCH = "DART_config"


class ConfigSwitch:
    """Before a model class of a family that `dart` knows. A family's budgets are read by `_read_dart_config`."""

    _dart_own: PruneHandle | None = None
    _dart_seen: dict[str, Any] | None = None

    @property
    def dart_handle(self) -> PruneHandle | None:
        """The active pruning, from `config.DART_config` or from the caller's `dart.prune`; None when off."""
        self._sync_dart()
        model: Any = self
        return self._dart_own or getattr(adapter_for(model).decoder(model), ATTACHED, None)

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
        return DartConfig.from_original(mapping)

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
        return DartConfig.from_original(mapping, ratio_first=True)
