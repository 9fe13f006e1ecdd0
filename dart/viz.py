"""Pictures of what was kept: dropped patches dimmed, kept ones in full colour with an outline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

DIM = 0.3  # brightness of a dropped patch
CELL_PX = 28
OUTLINE = (255, 120, 0)
NEWLINE = -1  # a visual token that shows no patch: the end of a row of tiles
PANELS_A_ROW = 4
TITLE_PX, GAP_PX = 16, 8


@dataclass(frozen=True)
class View:
    """A grid of patches that visual tokens stand for.

    images: the picture as the vision tower sees it, or the frames that share these tokens; titles: one for each.
    grid: (rows, columns). cells: for each of the view's tokens, in the order of the prompt, its patch in reading order,
    or NEWLINE.
    """

    titles: Sequence[str]
    images: Sequence[Image.Image]
    grid: tuple[int, int]
    cells: Sequence[int]


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


def kept_cells(views: Sequence[View], kept: Sequence[int]) -> list[list[int]]:
    """The kept patches of each view. kept: numbers of the kept visual tokens, 0 = the prompt's first, ascending.

    Raises ValueError for a number beyond the tokens that the views have together.
    """
    total = sum(len(view.cells) for view in views)
    if outside := [k for k in kept if not 0 <= k < total]:
        raise ValueError(f"visual tokens {outside[:3]} are not among the {total} of the views")
    alive = np.zeros(total, dtype=bool)
    alive[list(kept)] = True
    parts, start = [], 0
    for view in views:
        flags = alive[start : start + len(view.cells)]
        parts.append([cell for cell, flag in zip(view.cells, flags, strict=True) if flag and cell != NEWLINE])
        start += len(view.cells)
    return parts


def draw_views(views: Sequence[View], kept: Sequence[int]) -> Image.Image:
    """An RGB picture: one sheet with a titled panel for every picture and every frame, four in a row.

    kept: numbers of the kept visual tokens, as for `kept_cells`, and with its errors.
    """
    panels = [
        (title, draw_kept(image, cells, view.grid))
        for view, cells in zip(views, kept_cells(views, kept), strict=True)
        for title, image in zip(view.titles, view.images, strict=True)
    ]
    rows = [panels[k : k + PANELS_A_ROW] for k in range(0, len(panels), PANELS_A_ROW)]
    heights = [max(panel.height for _, panel in row) + TITLE_PX + GAP_PX for row in rows]
    width = max(sum(panel.width + GAP_PX for _, panel in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for title, panel in row:
            draw.text((x, y + 2), title, fill="black")
            sheet.paste(panel, (x, y + TITLE_PX))
            x += panel.width + GAP_PX
        y += height
    return sheet
