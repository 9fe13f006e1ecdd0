"""LLaVA-NeXT of transformers: `LlavaNextForConditionalGeneration` (llava-hf checkpoints).

What differs from LLaVA-1.5: a picture is an overview and several tiles, merged row by row, so that the tokens of one
tile do not lie side by side. Every view is a span of its own (`scope="span"`: a quota per tile; "joint": one pool).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from dart.families.base import register, runs_of


@register("llava-next-hf")
class LlavaNextTransformers:
    """model_type `llava_next`: visual tokens have the config's placeholder id, `image_sizes` tells the tiles."""

    aligns_labels = False

    def matches(self, model: nn.Module) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) == "llava_next"

    def entry(self, model: Any) -> Any:
        return model.model

    def decoder(self, model: Any) -> Any:
        return model.model.language_model

    def visual_span_ids(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        ids = arguments.get("input_ids")
        if ids is None or ids.shape[1] == 1:
            return None
        mask = ids == model.config.image_token_id
        sizes = arguments.get("image_sizes")
        if sizes is None or not bool(mask.any()):
            return runs_of(mask)
        views = torch.cat(_views(model, sizes)).to(ids.device)
        if views.numel() != int(mask.sum()):
            return runs_of(mask)  # the model itself says next that pictures and placeholders do not match
        spans = torch.zeros_like(ids).masked_scatter(mask, views)
        first = torch.where(mask, spans, spans.max() + 1).amin(-1, keepdim=True)
        return torch.where(mask, spans - first + 1, 0)


def _views(model: Any, sizes: torch.Tensor) -> list[torch.Tensor]:
    """For every picture a LongTensor [tokens] of its tokens' views, counted on over all pictures.

    sizes: [pictures, 2], height and width. The model's own merging is run on the views' numbers instead of features.
    """
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    pictures, last = [], 0
    for size in sizes:
        count = image_size_to_num_patches(size, model.config.image_grid_pinpoints, vision.image_size)
        numbers = torch.arange(last + 1.0, last + count + 1)
        pictures.append(numbers[:, None, None].expand(count, patches, 1))
        last += count
    merged, _ = model.model.pack_image_features(
        pictures, sizes, model.config.vision_feature_select_strategy, image_newline=torch.zeros(1)
    )
    numbers_only = [picture[:, 0].long() for picture in merged]
    # A newline (0) belongs to the tile that its row ends in.
    return [torch.where(numbers > 0, numbers, numbers.roll(1)) for numbers in numbers_only]
