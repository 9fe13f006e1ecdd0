"""The picture of the kept patches: what is bright, what is dim, what is outlined."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dart.viz import CELL_PX, DIM, OUTLINE, draw_kept
from scripts.demo import as_seen

WHITE = 255


def cells(image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """[rows, columns, CELL_PX, CELL_PX, 3]"""
    pixels = np.asarray(image)
    return pixels.reshape(grid[0], CELL_PX, grid[1], CELL_PX, 3).transpose(0, 2, 1, 3, 4)


def test_kept_patches_are_bright_and_outlined_and_the_others_dim() -> None:
    grid, kept = (3, 4), [0, 6, 11]
    drawn = draw_kept(Image.new("L", (50, 20), WHITE), kept, grid)
    assert drawn.mode == "RGB" and drawn.size == (4 * CELL_PX, 3 * CELL_PX)
    for number, cell in enumerate(cells(drawn, grid).reshape(-1, CELL_PX, CELL_PX, 3)):
        inside = cell[1:-1, 1:-1]
        border = np.concatenate([cell[0], cell[-1], cell[:, 0], cell[:, -1]])
        if number in kept:
            assert (inside == WHITE).all() and (border == OUTLINE).all()
        else:
            assert (cell == int(WHITE * DIM)).all()


def test_nothing_kept_is_dim_all_over() -> None:
    assert np.unique(np.asarray(draw_kept(Image.new("RGB", (10, 10), "white"), [], (2, 2)))).tolist() == [
        int(WHITE * DIM)
    ]


@pytest.mark.parametrize("patch", [-1, 4])
def test_patch_outside_the_grid_is_refused(patch: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{patch}\] are outside the 2 x 2 grid"):
        draw_kept(Image.new("RGB", (10, 10)), [0, patch], (2, 2))


class GreyProcessor:
    image_mean = (0.5, 0.5, 0.5)


def test_wide_pictures_are_drawn_as_the_tower_sees_them() -> None:
    """A 2:1 picture, red above blue: padded by a quarter above and below; uncropped only where it is not padded."""
    image = Image.new("RGB", (80, 40), "red")
    image.paste((0, 0, WHITE), (0, 20, 80, 40))
    grid = (4, 4)
    rows = cells(draw_kept(as_seen(image, GreyProcessor, "pad"), range(16), grid), grid)[:, 0, 10, 10].tolist()
    assert rows == [[127, 127, 127], [WHITE, 0, 0], [0, 0, WHITE], [127, 127, 127]]
    cropped = as_seen(image, GreyProcessor, None)
    assert cropped.size == (40, 40)
    assert cropped.getpixel((0, 0)) == (WHITE, 0, 0) and cropped.getpixel((39, 39)) == (0, 0, WHITE)
