"""LLaVA-NeXT of transformers: `LlavaNextForConditionalGeneration` (llava-hf checkpoints).

What differs from LLaVA-1.5: an image is an overview and several tiles, merged row by row, so that the tokens of one
tile do not lie side by side. Every view is a span of its own (`scope="span"`: a quota per
tile; "joint": one token group).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from dart.families import tiles
from dart.families.base import Family, register, runs_of


@register("llava_next")
class LlavaNextTransformers(Family):
    """Images alone; `image_sizes` tells the tiles."""

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        mask = self.visual_mask(model, arguments)
        if mask is None:
            return None
        sizes: Any = arguments.get("image_sizes")
        encoded = (arguments.get("mm_encoder_outputs") or {}).get("image")  # `generate` encodes first, and drops sizes
        if not bool(mask.any()) or (sizes is None and encoded is None):
            return runs_of(mask)
        if encoded is not None:
            pictures = [_views_of_features(model, features) for features in encoded.pooler_output]
        else:
            pictures = [_views_of_size(model, size) for size in sizes]
        views = _number(pictures).to(mask.device)
        if views.numel() != int(mask.sum()):
            return runs_of(mask)  # the model itself says next that pictures and placeholders do not match
        spans = torch.zeros_like(mask, dtype=torch.long).masked_scatter(mask, views)
        first = torch.where(mask, spans, spans.max() + 1).amin(-1, keepdim=True)
        return torch.where(mask, spans - first + 1, 0)

    def patches(
        self, model: Any, arguments: dict[str, Any], given: dict[str, Any], shape: torch.Size
    ) -> torch.Tensor | None:
        """A newline is made of no patch."""
        if (sizes := arguments.get("image_sizes")) is None:
            raise ValueError("`image_sizes`, which tell its tiles apart, are not given")
        return tiles.joined([_patches_of_size(model, size) for size in sizes])

    def grid(self, model: Any, arguments: dict[str, Any], spans: torch.Tensor) -> torch.Tensor | None:
        if (sizes := arguments.get("image_sizes")) is None:
            return None
        return tiles.grid([_patches_of_size(model, size) for size in sizes], spans, _patches_a_side(model))


def _number(pictures: Iterable[torch.Tensor]) -> torch.Tensor:
    """LongTensors [tokens] of views, each from 1 on, as one that counts on over all pictures."""
    counted, last = [], 0
    for views in pictures:
        counted.append(views + last)
        last += int(views.max())
    return torch.cat(counted)


def _patches_of_size(model: Any, size: torch.Tensor) -> tiles.Patches:
    """The patches of an image of `size` (height, width).

    The model's own merging is run on the patches' numbers instead of features.
    """
    side, config = _patches_a_side(model), model.config
    count = image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
    numbers = torch.arange(1.0, count * side**2 + 1).view(count, side**2, 1)
    (merged,), _ = model.model.pack_image_features(
        [numbers], [size], config.vision_feature_select_strategy, image_newline=torch.zeros(1)
    )
    return merged[:, 0].long() - 1, count * side**2


def _views_of_size(model: Any, size: torch.Tensor) -> torch.Tensor:
    """LongTensor [tokens] of an image: the view that each token comes from."""
    return tiles.views(_patches_of_size(model, size)[0], _patches_a_side(model))


def _views_of_features(model: Any, features: torch.Tensor) -> torch.Tensor:
    """The same from an image's merged features [tokens, D]: its newlines tell the rows and columns."""
    side, pixels = _patches_a_side(model), model.config.vision_config.image_size
    newlines = (features == model.model.image_newline.to(features)).all(-1).cpu()
    grids = [(height // pixels * side, width // pixels * side) for height, width in model.config.image_grid_pinpoints]
    ((numbers, _),) = tiles.merged_patches(newlines, grids, side)
    return tiles.views(numbers, side)


def _patches_a_side(model: Any) -> int:
    vision = model.config.vision_config
    return vision.image_size // vision.patch_size
