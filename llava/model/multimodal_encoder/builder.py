"""The vision tower that `mm_vision_tower` names."""

from __future__ import annotations

import os
from typing import Any

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def resolve_tower(name: str, checkpoint: str) -> str:
    """Where the tower's files are: `name` as a folder beside or inside the checkpoint, else the name itself (hub).

    Tried in order: absolute path, inside the checkpoint folder, in its parent, in the working directory.
    """
    folder = os.path.abspath(checkpoint)
    for base in (folder, os.path.dirname(folder), os.getcwd()):
        candidate = os.path.join(base, name)
        if os.path.isdir(candidate):
            return candidate
    if os.path.isabs(name) or name.startswith("."):
        raise FileNotFoundError(
            f"vision tower folder {name} (mm_vision_tower in {checkpoint}/config.json) does not exist"
        )
    return name


def build_vision_tower(config: Any) -> CLIPVisionTower:
    """A tower for `config`; without `config.mm_vision_config` its weights arrive later through `load_model`."""
    feature = getattr(config, "mm_vision_select_feature", "patch")
    return CLIPVisionTower(config.mm_vision_select_layer, feature, getattr(config, "mm_vision_config", None))
