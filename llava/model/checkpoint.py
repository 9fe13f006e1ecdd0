"""What a checkpoint folder holds, checked before anything large is read."""

from __future__ import annotations

import os

import torch
from safetensors import safe_open

from llava.files import read_json

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")


def weight_names(folder: str) -> set[str]:
    """Names of all tensors in the folder's checkpoint. Raises FileNotFoundError naming a missing shard."""
    for name in INDEXES:
        index = os.path.join(folder, name)
        if os.path.isfile(index):
            weight_map = read_json(index).get("weight_map", {})
            for shard in sorted(set(weight_map.values())):
                if not os.path.isfile(os.path.join(folder, shard)):
                    raise FileNotFoundError(
                        f"checkpoint shard {shard} is missing in {folder} ({name} lists it): download it again"
                    )
            return set(weight_map)
    for name in SINGLES:
        file = os.path.join(folder, name)
        if os.path.isfile(file):
            return _names_in(file)
    raise FileNotFoundError(f"{folder} has no weights: expected one of {', '.join((*INDEXES, *SINGLES))}")


def _names_in(file: str) -> set[str]:
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    return set(torch.load(file, map_location="meta", weights_only=True, mmap=True))
