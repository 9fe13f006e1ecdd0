"""The CLIP vision tower: patch features of one hidden layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def find_tower(name: str, checkpoint: str | None) -> str:
    """Where the tower named in a checkpoint's config is: as a folder beside or below the checkpoint, else from the cwd, else a hub name."""
    bases = [Path(checkpoint), Path(checkpoint).parent] if checkpoint else []
    for folder in (*(base / name for base in bases), Path(name)):
        if (folder / "config.json").is_file():
            return str(folder)
    return name


class CLIPVisionTower(nn.Module):
    """`mm_vision_select_layer` of a CLIP vision model, without its class token when `mm_vision_select_feature` is `patch`."""

    def __init__(self, config: Any, folder: str):
        super().__init__()
        self.select_layer = config.mm_vision_select_layer
        self.select_feature = getattr(config, "mm_vision_select_feature", "patch")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature must be patch or cls_patch, got {self.select_feature!r}")
        try:
            self.image_processor = CLIPImageProcessorPil.from_pretrained(folder)
            self.vision_tower = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder))
        except OSError as error:
            raise FileNotFoundError(f"vision tower {folder} named in the checkpoint's config was not found; put its folder beside the checkpoint") from error
        self.folder = folder

    def load(self, dtype: torch.dtype) -> None:
        """Read the tower's own weights (a vision model or a whole CLIP model, .bin or .safetensors)."""
        self.vision_tower = CLIPVisionModel.from_pretrained(self.folder, dtype=dtype)
        self.vision_tower.requires_grad_(False)

    @property
    def num_patches(self) -> int:
        config = self.vision_tower.config
        return (config.image_size // config.patch_size) ** 2

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [n, 3, H, W] -> [n, patches, mm_hidden_size] in the images' dtype."""
        tower = self.vision_tower
        states = tower(images.to(tower.device, tower.dtype), output_hidden_states=True).hidden_states
        features = states[self.select_layer]
        return (features[:, 1:] if self.select_feature == "patch" else features).to(images.dtype)
