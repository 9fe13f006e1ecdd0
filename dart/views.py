"""What each visual token of a prompt shows: grids of patches, found from the model's inputs for all families alike.

Four layouts are known: patches of any size with a `*_grid_thw`; square tiles; an overview and its tiles merged row by
row with a newline after each (LLaVA-NeXT); rows of patches with a separator after each (Pixtral).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dart.viz import NEWLINE, View

IMAGE_DIMS = 3  # channels, height, width
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True)
class Sources:
    """The images, or the videos, of a prompt, and what the model is given of them.

    kind: "image" or "video", of which the model is given them as. names: of the sources, for titles. frames: those of
    each source, an image's being one. runs: lengths of the runs of visual tokens, in order. inputs: the processor's
    tensors. mean, std: its normalisation, per channel. side: patches along an edge of a tile's square, or None.
    newlines: does the model merge tiles row by row? class_first: does a class token stand before the patches?
    """

    kind: str
    names: Sequence[str]
    frames: Sequence[Sequence[Image.Image]]
    runs: Sequence[int]
    inputs: Mapping[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    side: int | None = None
    newlines: bool = False
    class_first: bool = False

    @property
    def tokens(self) -> int:
        """Visual tokens in the prompt."""
        return sum(self.runs)

    @property
    def shares(self) -> list[int]:
        """Tokens of each source: its run, else equal parts; none where neither fits."""
        if len(self.runs) == len(self.frames):
            return list(self.runs)
        whole, rest = divmod(self.tokens, len(self.frames))
        return [] if rest else [whole] * len(self.frames)


def find_views(sources: Sources) -> list[View]:
    """The views of the visual tokens, in the order of the prompt. Raises ValueError for a layout that is not known."""
    for layout in (_grids, _merged_tiles, _square_tiles, _separated_rows):
        views = layout(sources)
        if views is not None and sum(len(view.cells) for view in views) == sources.tokens:
            return views
    raise ValueError(
        f"the kept patches cannot be drawn: {sources.tokens} visual tokens of {len(sources.frames)} {sources.kind}(s) "
        "are laid out in a way that is not known here; ask without the overlay"
    )


def _whole_root(area: float) -> int | None:
    """The side of a square of `area`, if it is a whole number."""
    side = round(math.sqrt(max(area, 0)))
    return side if side and side * side == area else None


def _grids(sources: Sources) -> list[View] | None:
    """`*_grid_thw` counts patches, of which merge * merge become one token; frames may share a grid."""
    grids = sources.inputs.get(f"{sources.kind}_grid_thw")
    if grids is None or len(grids) != len(sources.frames):
        return None
    shapes = [[int(n) for n in grid] for grid in grids]
    merge = _whole_root(sum(map(math.prod, shapes)) / sources.tokens)
    if merge is None:
        return None
    views = []
    for name, frames, (times, height, width) in zip(sources.names, sources.frames, shapes, strict=True):
        rows, columns = height // merge, width // merge
        shared = math.ceil(len(frames) / times)
        titles = [f"{name}, frame {k + 1}" for k in range(len(frames))] if sources.kind == "video" else [name]
        for first in range(0, len(frames), shared):
            shown = slice(first, first + shared)
            views.append(View(titles[shown], frames[shown], (rows, columns), range(rows * columns)))
    return views


def _merged_tiles(sources: Sources) -> list[View] | None:
    """An overview of side * side tokens, then rows of the whole image without its padding, a newline after each."""
    side, pixels = sources.side, sources.inputs.get(PIXELS[sources.kind])
    if pixels is None or not sources.newlines or not side or sources.kind == "video":
        return None
    views = []
    for k, (name, (image,), share) in enumerate(zip(sources.names, sources.frames, sources.shares, strict=False)):
        rest = share - side * side
        if rest <= 1:
            return None
        overview = Image.fromarray(_as_seen(pixels[k][:1], sources)[0])
        rows, columns = _merged_grid(rest, image.width / image.height, side)
        cells = [cell for row in range(rows) for cell in (*range(row * columns, (row + 1) * columns), NEWLINE)]
        views.append(View([f"{name}, overview"], [overview], (side, side), range(side * side)))
        views.append(View([f"{name}, tiles"], [image], (rows, columns), cells))
    return views


def _merged_grid(tokens: int, shape: float, side: int) -> tuple[int, int]:
    """(rows, columns) with rows * (columns + 1) = tokens of an image whose width / height is `shape`.

    Padding is cut off two opposite sides, evenly: the other dimension is that of whole tiles, and this one is the
    image's, give or take a patch. Very large images are scaled down after that, so that neither need hold.
    """

    def misfit(grid: tuple[int, int]) -> tuple[bool, float]:
        rows, columns = grid
        by_rows = rows % side == 0 and abs(columns - rows * shape) <= 1
        by_columns = columns % side == 0 and abs(rows - columns / shape) <= 1
        return not (by_rows or by_columns), abs(math.log(columns / rows / shape))

    return min(((r, tokens // r - 1) for r in range(1, tokens // 2 + 1) if tokens % r == 0), key=misfit)


def _square_tiles(sources: Sources) -> list[View] | None:
    """Every square of pixels becomes a square of tokens; a source may have one token more that shows no patch."""
    pixels = sources.inputs.get(PIXELS[sources.kind])
    if pixels is None or pixels[0].ndim < IMAGE_DIMS:
        return None
    tiles = _as_seen(pixels, sources)
    count = len(sources.frames)
    for extra in (0, 1):
        side = _whole_root((sources.tokens - extra * count) / len(tiles))
        if side and len(tiles) % (count if extra else 1) == 0:
            break
    else:
        return None
    views = []
    for tile, (title, first, last) in zip(tiles, _parts(sources, len(tiles), side * side, bool(extra)), strict=True):
        cells = list(range(side * side))
        if extra and sources.class_first and first:
            cells.insert(0, NEWLINE)
        elif extra and not sources.class_first and last:
            cells.append(NEWLINE)
        views.append(View([title], [Image.fromarray(tile)], (side, side), cells))
    return views


def _parts(sources: Sources, tiles: int, patches: int, equal: bool) -> Iterator[tuple[str, bool, bool]]:
    """For every tile its title, and whether it is the first and the last of its source.

    equal: has every source as many? If not, tiles between separators do not tell which source they come from.
    """
    counts = [share // patches for share in sources.shares]
    told = equal or len(counts) in (1, tiles, len(sources.runs))
    if sum(counts) != tiles or not told:
        yield from ((f"tile {k + 1}", False, False) for k in range(tiles))
        return
    for name, frames, count in zip(sources.names, sources.frames, counts, strict=True):
        word = "frame" if len(frames) > 1 else "tile"
        for k in range(count):
            yield f"{name}, {word} {k + 1}" if count > 1 else name, k == 0, k == count - 1


def _separated_rows(sources: Sources) -> list[View] | None:
    """`image_sizes` of the images as scaled tell the grids; the runs are their rows."""
    sizes = sources.inputs.get("image_sizes")
    if sizes is None or len(sizes) != len(sources.frames) or len(sizes) == len(sources.runs):
        return None
    shapes = [[int(n) for n in size] for size in sizes]
    patch = _whole_root(sum(map(math.prod, shapes)) / sources.tokens)
    if patch is None:
        return None
    grids = [(height // patch, width // patch) for height, width in shapes]
    if [columns for rows, columns in grids for _ in range(rows)] != list(sources.runs):
        return None
    return [
        View([name], list(frames), grid, range(grid[0] * grid[1]))
        for name, frames, grid in zip(sources.names, sources.frames, grids, strict=True)
    ]


def _as_seen(pixels: Any, sources: Sources) -> np.ndarray:
    """uint8 [tiles, H, W, 3]: normalised tiles as pictures; tiles of zeros, which pad a batch, are left out."""
    stacks = [np.asarray(each.float().cpu()) for each in pixels]
    tiles = np.concatenate([stack.reshape(-1, *stack.shape[-3:]) for stack in stacks])
    tiles = tiles[tiles.any(axis=(1, 2, 3))]
    colours = tiles.transpose(0, 2, 3, 1) * np.asarray(sources.std) + np.asarray(sources.mean)
    return (255 * colours.clip(0, 1)).round().astype(np.uint8)
