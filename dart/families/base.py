"""What the engine needs to know about a family of models.

A family whose model looks like most (placeholder ids in `input_ids`, a text decoder with layers and a final norm) needs
no file of its own: `Family` derives everything from the model. A file in this folder says what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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

    def question(self, model: Any, ids: np.ndarray) -> np.ndarray:
        """bool [M]: which of `ids`, int [M], the text after a sample's last image, ask the question.

        No special token does, that is none of an id that the model's configs name (`..._token_id`). A model that names
        several end tokens ends the turns of both sides with one of them: what comes after the last one in the text is
        the template's call for an answer, and is left out. A model with one end token (LLaVA-1.5) ends answers alone:
        its template's tail is plain text that nobody can tell from the question, and stays. Where this leaves nothing
        (the question came before the image), all of the text.
        """
        ends, special = end_tokens(model), special_tokens(model)
        asks = ~np.isin(ids, sorted(special))
        if len(ends) > 1 and (turns := np.flatnonzero(np.isin(ids, sorted(ends)))).size:
            asks[turns[-1] :] = False
        return asks if asks.any() else np.ones_like(asks)

    def earliest_layer(self, model: Any) -> int:
        """The first layer at which tokens may be dropped: after the last one that visual features are added to."""
        configs = [model.config, *(getattr(model.config, name, None) for name in ("vision_config", "text_config"))]
        added = [len(each) for config in configs for name in DEEPSTACK if (each := getattr(config, name, None))]
        mapped = [layer + 1 for config in configs for _, layer in getattr(config, "deepstack_layer_map", None) or ()]
        spatial = [layer + 1 for config in configs for layer in getattr(config, "spatial_target_layers", None) or ()]
        return max([0, *added, *mapped, *spatial])

    def vision_config(self, model: Any) -> Any:
        """The config of the vision tower."""
        return getattr(model.config, "vision_config", None)

    def vision(self, model: Any) -> tuple[Any, int, Any]:
        """(vision tower, the number of its hidden states that the projector is given, projector).

        Raises ValueError where it is not that simple.
        """
        base = getattr(model, "model", model)
        tower, projector = getattr(base, "vision_tower", None), getattr(base, "multi_modal_projector", None)
        layer = getattr(model.config, "vision_feature_layer", None)
        if tower is None or projector is None or not isinstance(layer, int):
            raise ValueError(
                f"the vision tower of {type(model).__name__} gives no signals: it has no `vision_tower` with one "
                "`vision_feature_layer` and a projector after it"
            )
        return tower, layer, projector

    def patches(
        self, model: Any, arguments: dict[str, Any], given: dict[str, Any], shape: torch.Size
    ) -> torch.Tensor | None:
        """LongTensor [tokens, m] on the host: of each visual token that one run of the vision tower makes, in the order
        of their placeholders, the m patches that it is made of, as places in what the projector is given, flattened;
        -1: none. None, the default: each patch is a token, view by view, and each view a span.

        arguments: of the forward; given: of the tower; shape: (views, patches) or (patches,) of what the projector is
        given. Raises ValueError with the reason where it is not known.
        """
        return None

    def grid(self, model: Any, arguments: dict[str, Any], spans: torch.Tensor) -> torch.Tensor | None:
        """LongTensor [B, S, 4] of (frame, row, column, tile) of each visual token; None: not known.

        spans: LongTensor [B, S] of `visual_span_ids` on the host. By default of spans that have a token per patch of a
        square tower, and of those whose (frames, rows, columns) of patches are given as `image_grid_thw` or
        `video_grid_thw`, merged square by square.
        """
        grid = torch.zeros(*spans.shape, 4, dtype=torch.long)
        kinds = [kind for kind in ("image", "video") if arguments.get(f"{kind}_grid_thw") is not None]
        queues = {kind: arguments[f"{kind}_grid_thw"].tolist() for kind in kinds}
        for row, numbers in enumerate(spans):
            for number in numbers[numbers > 0].unique():
                places = (numbers == number).nonzero().flatten()
                kind = kinds[-1] if kinds else ""
                if len(kinds) > 1 and int(arguments["input_ids"][row, places[0]]) != model.config.video_token_id:
                    kind = "image"
                shape = self._merged(model, queues[kind], len(places)) if kinds else self._square(model, len(places))
                if shape is None:
                    return None
                high, wide = shape
                order = torch.arange(len(places))
                line, tile = order // wide, torch.full_like(order, int(number) - 1)
                grid[row, places] = torch.stack([line // high, line % high, order % wide, tile], 1)
        return grid

    def _square(self, model: Any, count: int) -> tuple[int, int] | None:
        """(rows, columns) of a span of `count` tokens that has one for each patch."""
        config = self.vision_config(model)
        pixels, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
        side = pixels // patch if isinstance(pixels, int) and isinstance(patch, int) else 0
        return (side, side) if side * side == count else None

    def _merged(self, model: Any, queue: list[list[int]], count: int) -> tuple[int, int] | None:
        """(rows, columns) of a frame of the next span, of `count` tokens; queue: (frames, rows, columns) in patches.

        A video whose frames are spans of their own is in the queue as one, and taken apart here.
        """
        merge = getattr(self.vision_config(model), "spatial_merge_size", None)
        if not isinstance(merge, int) or not queue:
            return None
        frames, high, wide = queue.pop(0)
        shape = high // merge, wide // merge
        if frames > 1 and count == shape[0] * shape[1]:
            queue[:0] = [[1, high, wide]] * (frames - 1)
        return shape if count in (shape[0] * shape[1], frames * shape[0] * shape[1]) else None


def _named_ids(model: Any, names: Callable[[str], bool]) -> set[int]:
    """The ids in the model's configs under the names that `names` accepts."""
    configs = [model.config, model.config.get_text_config(decoder=True), getattr(model, "generation_config", None)]
    found: set[int] = set()
    for config in configs:
        for name, value in ({} if config is None else vars(config)).items():
            if names(name):
                found |= {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)}
    return found


def end_tokens(model: Any) -> set[int]:
    """The ids that end a turn or a text, by the model's configs."""
    return _named_ids(model, lambda name: name == "eos_token_id")


def special_tokens(model: Any) -> set[int]:
    """The ids that stand for no text, by the model's configs."""
    return _named_ids(model, lambda name: name.endswith(("_token_id", "_token_index")))


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
