"""Pictures of what was kept: dropped patches dimmed, kept ones in full colour with an outline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

DIM = 0.3  # brightness of a dropped patch
CELL_PX = 28
OUTLINE = (255, 120, 0)


def draw_kept(image: Image.Image, kept: Sequence[int], grid: tuple[int, int]) -> Image.Image:
    """An RGB picture of `image` on its patch grid.

    image: the picture as the vision tower sees it (padded to a square where the model pads); kept: patch numbers in
    reading order, 0 .. rows * columns - 1; grid: (rows, columns). Raises ValueError for a patch outside the grid.
    """
    rows, columns = grid
    if outside := [k for k in kept if not 0 <= k < rows * columns]:
        raise ValueError(f"patches {outside[:3]} are outside the {rows} x {columns} grid")
    mask = np.zeros(rows * columns, dtype=bool)
    mask[list(kept)] = True
    mask = mask.reshape(grid)
    pixels = np.asarray(image.convert("RGB").resize((columns * CELL_PX, rows * CELL_PX)), dtype=np.float32)
    bright = np.where(mask, 1.0, DIM).repeat(CELL_PX, 0).repeat(CELL_PX, 1)
    out = Image.fromarray((pixels * bright[..., None]).astype(np.uint8))
    draw = ImageDraw.Draw(out)
    for row, column in zip(*np.nonzero(mask), strict=True):
        x, y = int(column) * CELL_PX, int(row) * CELL_PX
        draw.rectangle([x, y, x + CELL_PX - 1, y + CELL_PX - 1], outline=OUTLINE)
    return out
