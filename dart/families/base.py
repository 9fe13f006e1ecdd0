"""What the engine needs to know about a family of models.

A family whose model looks like most (placeholder ids in `input_ids`, a text decoder with layers and a final norm) needs
no file of its own: `Family` derives everything from the model. A file in this folder says what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PLACEHOLDERS = (
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "video_token_index",
)
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "embedding_norm", "norm_f", "ln_f")
DEEPSTACK = ("deepstack_visual_indexes",)  # one layer for each of these


class Family:
    """One family. Everything is read from the model and its inputs; nothing of a sample is stored.

    placeholders: names in the model's config of the ids that stand for visual tokens. refused: why models of this
    family cannot be pruned, or None.
    """

    placeholders: tuple[str, ...] = PLACEHOLDERS
    refused: str | None = None
    aligns_labels = False  # the model fits `labels` to shorter logits itself
    expands_prompts = False  # `generate` makes a prompt longer than what it was given

    def decoder(self, model: Any) -> Any:
        """The text model: has `.layers`, `.norm` and `.config`. Raises TypeError where there is none."""
        try:
            count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
        except AttributeError:
            count = -1
        for name, module in model.named_modules():
            if any(part in name for part in ("vision", "visual", "audio", "image")):
                continue
            layers = getattr(module, "layers", None)
            if isinstance(layers, nn.ModuleList) and len(layers) == count and self.final_norm(module) is not None:
                return module
        raise TypeError(f"dart.prune finds no text decoder (`layers`, `norm`) in {type(model).__name__}")

    def final_norm(self, decoder: Any) -> Any:
        """The decoder's last norm."""
        return next((norm for name in FINAL_NORMS if (norm := getattr(decoder, name, None)) is not None), None)

    def visual_ids(self, model: Any) -> list[int]:
        """The placeholder ids of `input_ids`."""
        configs = (model.config, getattr(model.config, "thinker_config", None))
        found = (getattr(config, name, None) for config in configs for name in self.placeholders)
        return sorted({int(each) for each in found if isinstance(each, int)})

    def visual_mask(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        """bool [B, S], True for a placeholder; None for a decoding step and for embeddings without ids."""
        ids = arguments.get("input_ids")
        if ids is None or ids.ndim != 2 or ids.shape[1] == 1:
            return None
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for number in self.visual_ids(model):
            mask |= ids == number
        return mask

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        """LongTensor [B, S] for a forward's arguments: 0 = text, k = the k-th visual span; None: nothing visual.

        A span is an image, a view of one, a frame or a video: by default a run of placeholders. On any device.
        """
        mask = self.visual_mask(model, arguments)
        return None if mask is None else runs_of(mask)

    def earliest_layer(self, model: Any) -> int:
        """The first layer at which tokens may be dropped: after the last one that visual features are added to."""
        configs = [model.config, *(getattr(model.config, name, None) for name in ("vision_config", "text_config"))]
        added = [len(each) for config in configs for name in DEEPSTACK if (each := getattr(config, name, None))]
        mapped = [layer + 1 for config in configs for _, layer in getattr(config, "deepstack_layer_map", None) or ()]
        spatial = [layer + 1 for config in configs for layer in getattr(config, "spatial_target_layers", None) or ()]
        return max([0, *added, *mapped, *spatial])

    def grid(self, model: Any, arguments: dict[str, Any], spans: torch.Tensor) -> list[torch.Tensor] | None:
        """Per sample, LongTensor [N, 4] of (frame, row, column, tile); None: not known for this family.

        By default the square of each span, where it is one.
        """
        grids = []
        for row in spans.cpu():
            parts = []
            for number in row[row > 0].unique():
                count = int((row == number).sum())
                side = round(count**0.5)
                if side * side != count:
                    return None
                place = torch.arange(count)
                tile = torch.full_like(place, int(number) - 1)
                parts.append(torch.stack([torch.zeros_like(place), place // side, place % side, tile], 1))
            grids.append(torch.cat(parts) if parts else torch.zeros(0, 4, dtype=torch.long))
        return grids


FAMILIES: dict[str, Family] = {}


def register(*model_types: str) -> Callable[[type], type]:
    """Class decorator that makes the class the family of these model types."""

    def add(cls: type) -> type:
        for name in model_types:
            if name in FAMILIES:
                raise ValueError(f"model type {name!r} is already registered by {type(FAMILIES[name]).__module__}")
            FAMILIES[name] = cls()
        return cls

    return add


def runs_of(mask: torch.Tensor) -> torch.Tensor:
    """bool [B, S] -> LongTensor [B, S]: the number, from 1, of the run of True a position is in; 0 elsewhere."""
    starts = mask & ~nn.functional.pad(mask, (1, 0))[:, :-1]
    return starts.long().cumsum(-1) * mask
