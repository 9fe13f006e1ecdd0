"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

What differs: the vision tower, `visual`, takes the patches of all images as one sequence and itself merges squares of
them into tokens. In Qwen2.5-VL's tower the squares lie window by window until the merger is through.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from dart.families.base import Family, register


@register("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
class QwenVL(Family):
    """The merger is the projector."""

    def vision(self, model: Any) -> tuple[Any, int, Any]:
        tower = getattr(model, "model", model).visual
        return tower, -1, tower.merger

    def patches(
        self, model: Any, arguments: dict[str, Any], given: dict[str, Any], shape: torch.Size
    ) -> torch.Tensor | None:
        tower = getattr(model, "model", model).visual
        config, grid = tower.config, given["grid_thw"]
        squares = torch.arange(shape.numel()).view(-1, config.spatial_merge_size**2)
        if not hasattr(config, "window_size"):
            return squares
        if hasattr(tower, "get_window_index"):  # of earlier releases of transformers
            order = tower.get_window_index(grid)[0]
        else:
            windows = sys.modules[type(tower).__module__].get_vision_window_index
            order = windows(grid, config.spatial_merge_size, config.window_size, config.patch_size)[0]
        return squares[torch.as_tensor(order).cpu().argsort()]
