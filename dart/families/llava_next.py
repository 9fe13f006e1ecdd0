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
        total, parts = 0, []
        for numbers in _patches(model, sizes):
            parts.append(torch.where(numbers < 0, numbers, numbers + total))
            total += int(numbers.max()) + 1
        return torch.cat(parts)[:, None]

    def grid(self, model: Any, arguments: dict[str, Any], spans: torch.Tensor) -> torch.Tensor | None:
        """Places in the view that a token comes from; a newline lies at the end of its row."""
        sizes, mask = arguments.get("image_sizes"), spans > 0
        numbers = torch.zeros(0, dtype=torch.long) if sizes is None else torch.cat(_patches(model, sizes))
        if len(numbers) != int(mask.sum()):
            return None
        side = _patches_a_side(model)
        newline, place = numbers < 0, torch.where(numbers < 0, numbers.roll(1), numbers) % side**2
        grid = torch.zeros(*spans.shape, 4, dtype=torch.long)
        column = torch.where(newline, side, place % side)
        grid[mask] = torch.stack([torch.zeros_like(place), place // side, column, spans[mask] - 1], 1)
        return grid


def _number(pictures: Iterable[torch.Tensor]) -> torch.Tensor:
    """LongTensors [tokens] of views, each from 1 on, as one that counts on over all pictures."""
    counted, last = [], 0
    for views in pictures:
        counted.append(views + last)
        last += int(views.max())
    return torch.cat(counted)


def _patches(model: Any, sizes: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """LongTensor [tokens] of each image, of `sizes` (height, width): the patch of all its views' that each token comes
    from; -1: a newline.

    The model's own merging is run on the patches' numbers instead of features.
    """
    side, config, strategy = _patches_a_side(model), model.config, model.config.vision_feature_select_strategy
    numbers = []
    for size in sizes:
        count = image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
        views = torch.arange(1.0, count * side**2 + 1).view(count, side**2, 1)
        (merged,), _ = model.model.pack_image_features([views], [size], strategy, image_newline=torch.zeros(1))
        numbers.append(merged[:, 0].long() - 1)
    return numbers


def _views_of_size(model: Any, size: torch.Tensor) -> torch.Tensor:
    """LongTensor [tokens] of an image: the view, from 1, that each token comes from; a newline belongs to the tile that
    its row ends in."""
    (numbers,) = _patches(model, [size])
    views = numbers // _patches_a_side(model) ** 2 + 1
    return torch.where(views > 0, views, views.roll(1))


def _views_of_features(model: Any, features: torch.Tensor) -> torch.Tensor:
    """The same from an image's merged features [tokens, D]: its newlines tell the rows and columns.

    Padding is cut off on two opposite sides alone, so that one dimension is whole; of the grids that fit it, the model
    takes the smallest, and among equals the first.
    """
    side = _patches_a_side(model)
    newlines = (features == model.model.image_newline.to(features)).all(-1).nonzero().flatten().cpu()
    overview = torch.ones(side * side, dtype=torch.long)
    rows = len(newlines)
    columns = int(newlines[0]) - side * side
    if columns == 0:  # one view alone, and a newline
        return torch.ones(len(features), dtype=torch.long)
    pixels = model.config.vision_config.image_size
    grids = [(height // pixels * side, width // pixels * side) for height, width in model.config.image_grid_pinpoints]
    fits = [g for g in grids if (rows == g[0] and columns <= g[1]) or (columns == g[1] and rows <= g[0])]
    high, wide = min(fits, key=lambda grid: grid[0] * grid[1])
    tile_rows = (torch.arange(rows) + (high - rows) // 2) // side
    tile_columns = (torch.arange(columns) + (wide - columns) // 2) // side
    tile_columns = torch.cat([tile_columns, tile_columns[-1:]])
    tiles = tile_rows[:, None] * (wide // side) + tile_columns + 2
    return torch.cat([overview, tiles.flatten()])


def _patches_a_side(model: Any) -> int:
    vision = model.config.vision_config
    return vision.image_size // vision.patch_size
