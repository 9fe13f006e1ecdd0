"""LLaVA-OneVision of transformers: `LlavaOnevisionForConditionalGeneration`.

What differs from LLaVA-1.5: an image is an overview and tiles, merged row by row; where they are many, their features
are scaled down, so that its tokens are no patches any more. An image with all its views is one span. Videos are pooled.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from dart.families.base import Family, register


@register("llava_onevision")
class LlavaOnevision(Family):
    """`image_sizes` tells the tiles."""

    def patches(
        self, model: Any, arguments: dict[str, Any], given: dict[str, Any], shape: torch.Size
    ) -> torch.Tensor | None:
        """A newline is made of no patch. The model's own merging is run on the patches' numbers instead of features."""
        if (sizes := arguments.get("image_sizes")) is None:
            raise ValueError("`image_sizes`, which tell its tiles apart, are not given; videos have none")
        config, parts, total = model.config, [], 1.0
        for size in sizes:
            views = image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            numbers = torch.arange(total, total + views * shape[1]).view(views, shape[1], 1)
            (merged,), _ = model.model.pack_image_features(
                [numbers], [size], image_newline=torch.zeros(1), vision_aspect_ratio=config.vision_aspect_ratio
            )
            if bool((merged != merged.round()).any()):
                raise ValueError("the features of so large an image are scaled down: its visual tokens are no patches")
            parts.append(merged.long() - 1)
            total += views * shape[1]
        return torch.cat(parts)
