"""LLaVA's CLIP vision tower: hidden states of one layer, without the class token."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel


class CLIPVisionTower(nn.Module):
    """select_layer: index into the hidden states (-2: the last but one); select_feature: "patch" or "cls_patch"."""

    def __init__(self, select_layer: int, select_feature: str, vision_config: dict[str, Any] | None = None):
        super().__init__()
        if select_feature not in ("patch", "cls_patch"):
            raise ValueError(
                f"config.json: mm_vision_select_feature must be 'patch' or 'cls_patch', got {select_feature!r}"
            )
        self.select_layer, self.select_feature = select_layer, select_feature
        self.vision_tower: CLIPVisionModel | None = None
        if vision_config is not None:
            # The tower follows the language model, not the dtype that its own folder was saved in.
            dtype = torch.get_default_dtype()
            self.vision_tower = CLIPVisionModel._from_config(CLIPVisionConfig(**vision_config), dtype=dtype)

    @property
    def is_loaded(self) -> bool:
        return self.vision_tower is not None

    def load_model(self, path: str, dtype: torch.dtype) -> None:
        """Read the tower from a folder or hub name: a CLIPVisionModel, or the vision part of a whole CLIPModel.

        Raises FileNotFoundError when it is not there, ValueError when weights are missing.
        """
        try:
            tower, info = CLIPVisionModel.from_pretrained(path, dtype=dtype, output_loading_info=True)
        except OSError as error:
            raise FileNotFoundError(
                f"vision tower {path} cannot be loaded: expected a CLIP folder or hub name ({error})"
            ) from error
        if info["missing_keys"]:
            raise ValueError(f"vision tower {path} lacks weights: {', '.join(sorted(info['missing_keys'])[:3])}, ...")
        self.vision_tower = tower.requires_grad_(False)

    @property
    def tower(self) -> CLIPVisionModel:
        """The CLIP model. Raises ValueError before its weights are there."""
        if self.vision_tower is None:
            raise ValueError(
                "the vision tower is not loaded: use llava.model.builder.load_pretrained_model or load_model"
            )
        return self.vision_tower

    def used_parameters(self) -> list[nn.Parameter]:
        """What the features depend on. The layers behind `select_layer` and the last norm have no gradient."""
        count = range(self.tower.config.num_hidden_layers + 1)[self.select_layer]  # states: one more than layers

        def used(name: str) -> bool:
            layer = re.search(r"\blayers\.(\d+)\.", name)
            return int(layer.group(1)) < count if layer else "post_layernorm" not in name

        return [part for name, part in self.tower.named_parameters() if used(name)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> [N, patches, C] in the dtype of `images`."""
        tower = self.tower
        pixels = images.to(device=tower.device, dtype=tower.dtype)
        hidden = tower(pixels, output_hidden_states=True).hidden_states[self.select_layer]
        features = hidden[:, 1:] if self.select_feature == "patch" else hidden
        return features.to(images.dtype)
