"""The vision tower that `mm_vision_tower` names."""

from __future__ import annotations

import os
from typing import Any

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def resolve_tower(name: str, checkpoint: str, base: str | None = None) -> str:
    """Where the tower's files are: `name` as a folder beside or inside the checkpoint, else the name itself (hub).

    Tried in order: absolute path, inside the checkpoint folder, in its parent, then the same two of its base model, in
    the working directory.
    """
    folders = [os.path.abspath(each) for each in (checkpoint, base) if each is not None]
    for place in (*(near for each in folders for near in (each, os.path.dirname(each))), os.getcwd()):
        candidate = os.path.join(place, name)
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
