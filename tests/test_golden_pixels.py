"""Our preprocessing against the recorded tiles: the 336 x 336 pixels that the research code saw, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_golden import GOLDEN, RECORD, sample
from PIL import Image

# CLIP's published mean and standard deviation of each channel, written here anew as an independent reference.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
SIDE = 336


def pixels_of(tiles: Path) -> torch.Tensor:
    """float32 [tiles, 3, 336, 336] of the recorded picture: tiles one below the other, before normalisation."""
    with Image.open(tiles) as image:
        values = np.asarray(image).reshape(-1, SIDE, SIDE, 3)
    scaled = (values.astype(np.float64) / 255).astype(np.float32)
    return torch.from_numpy(((scaled - MEAN) / STD).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("name", RECORD["samples"])
def test_preprocessing_equals_the_recorded_tiles_bit_for_bit(name: str) -> None:
    record = RECORD["samples"][name]
    expected = pixels_of(GOLDEN / "images" / record["tiles_png"])
    assert hashlib.sha256(expected.numpy().tobytes()).hexdigest() == record["pixel_values_sha256"]
    assert torch.equal(sample(name)[1], expected)
