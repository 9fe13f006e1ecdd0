"""What the pruner needs to know about a family of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn


class Adapter(Protocol):
    """One family. Everything is read from the model and its inputs; nothing of a sample is stored.

    aligns_labels: does the model itself fit `labels` to the shorter logits of a pruned prefill?
    """

    aligns_labels: bool

    def matches(self, model: nn.Module) -> bool:
        """Is `model` of this family?"""
        ...

    def entry(self, model: Any) -> Any:
        """The module whose forward arguments tell where the visual tokens are."""
        ...

    def decoder(self, model: Any) -> Any:
        """The text model: has `.layers`, `.norm` and `.config`; takes inputs_embeds."""
        ...

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        """LongTensor [B, S] for the entry's arguments: 0 = text, k = the k-th visual span; None: no visual.

        On any device; the host reads it.
        """
        ...

    def earliest_layer(self, model: Any) -> int:
        """The first layer at which tokens may be dropped; a smaller `DartConfig.layer` is raised to it."""
        return 0


ADAPTERS: dict[str, Adapter] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator that adds a family under `name`."""

    def add(cls: type) -> type:
        if name in ADAPTERS:
            raise ValueError(f"model family {name!r} is already registered by {type(ADAPTERS[name]).__module__}")
        ADAPTERS[name] = cls()
        return cls

    return add


class Placeholders(Adapter):
    """A family of transformers' whose `input_ids` have a placeholder id for every visual token.

    A visual span is a run of placeholders: one picture or one video, whatever the number of its tiles or frames.
    """

    model_type: str
    placeholders: tuple[str, ...] = ("image_token_id", "video_token_id")  # names in the config
    aligns_labels = False

    def matches(self, model: nn.Module) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) == self.model_type

    def entry(self, model: Any) -> Any:
        return model.model

    def decoder(self, model: Any) -> Any:
        return model.model.language_model

    def visual_mask(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        """bool [B, S], True for a placeholder; None for a decoding step and for embeddings without ids."""
        ids = arguments.get("input_ids")
        if ids is None or ids.shape[1] == 1:
            return None
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for name in self.placeholders:
            mask |= ids == getattr(model.config, name)
        return mask

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        mask = self.visual_mask(model, arguments)
        return None if mask is None else runs_of(mask)


def runs_of(mask: torch.Tensor) -> torch.Tensor:
    """bool [B, S] -> LongTensor [B, S]: the number, from 1, of the run of True a position is in; 0 elsewhere."""
    starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return starts.long().cumsum(-1) * mask
