"""The code that tower and language model are taught to share.

Every fact about a patch (its colour, what it belongs to, a digit, a position ...) owns one direction of an orthonormal
basis of the language model's embedding space. The tower learns to write these directions, the language model learns to
read them, and the word embeddings of the same facts start from the same directions; so both sides can be trained apart
and then together.
"""

from __future__ import annotations

import numpy as np
import torch

from llava.eval.probe.drawing import COLORS, GRID, KINDS

BASIS_SEED = 7
POSITION_WAVES = (1, 2, 3, 4)
POSITION_SCALE = 0.5
FACTORS = {"color": len(COLORS), "kind": len(KINDS), "digit": 10, "slot": 2}
FLAGS = ("center", "pad", "plain")


def basis(width: int) -> torch.Tensor:
    """[width, width] float32, rows orthonormal."""
    generator = torch.Generator().manual_seed(BASIS_SEED)
    return torch.linalg.qr(torch.randn(width, width, generator=generator)).Q


def _offsets() -> dict[str, int]:
    offsets, at = {}, 0
    for name, size in [*FACTORS.items(), *((f, 1) for f in FLAGS)]:
        offsets[name], at = at, at + size
    offsets["position"] = at
    return offsets


OFFSETS = _offsets()
FACTS = OFFSETS["position"]
COORDINATES = FACTS + 2 * (1 + 2 * len(POSITION_WAVES))


def position_features(rows: int = GRID, columns: int = GRID) -> np.ndarray:
    """float32 [rows, columns, 2 * (1 + 2 * waves)]: the patch centre, linearly and as waves."""

    def along(count: int) -> np.ndarray:
        mid = (np.arange(count) + 0.5) / count
        return np.stack([2 * mid - 1, *(f(np.pi * k * mid) for k in POSITION_WAVES for f in (np.sin, np.cos))], -1)

    down = np.repeat(along(rows)[:, None], columns, 1)
    across = np.repeat(along(columns)[None], rows, 0)
    return np.concatenate([down, across], -1).astype(np.float32) * POSITION_SCALE


POSITIONS = position_features()


def encode_labels(labels: dict[str, np.ndarray]) -> np.ndarray:
    """Patch labels (int [GRID, GRID] each) -> float32 coordinates [GRID, GRID, COORDINATES] in the basis."""
    return np.concatenate([encode_facts(labels), POSITIONS], -1)


def encode_facts(labels: dict[str, np.ndarray]) -> np.ndarray:
    """Patch labels (int [rows, columns] each) -> float32 coordinates [rows, columns, FACTS]: all but the position."""
    out = np.zeros((*labels["color"].shape, FACTS), dtype=np.float32)
    for name in FACTORS:
        rows, cols = np.nonzero(labels[name] >= 0)
        out[rows, cols, OFFSETS[name] + labels[name][rows, cols]] = 1
    out[..., OFFSETS["center"]] = labels["center"]
    out[..., OFFSETS["pad"]] = labels["pad"]
    out[..., OFFSETS["plain"]] = (labels["kind"] < 0) & (labels["pad"] == 0)
    return out


def word_directions() -> dict[str, int]:
    """Word (as the tokenizer's piece) -> index of the basis direction it shares with the patches."""
    words = {f"▁{c}": OFFSETS["color"] + k for k, c in enumerate(COLORS)}
    words |= {f"▁{s}": OFFSETS["kind"] + k for k, s in enumerate(KINDS)}
    return words | {str(d): OFFSETS["digit"] + d for d in range(10)}
