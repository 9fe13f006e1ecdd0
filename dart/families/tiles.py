"""Images of an overview and tiles, whose tokens are merged row by row: which patch each of them comes from.

A patch is counted over all views of its image, the overview's first; -1 is a newline, which ends a row of the tiles.
"""

from __future__ import annotations

import torch

Patches = tuple[torch.Tensor, int]  # LongTensor [tokens] of an image, and how many patches its views have


def merged_patches(newlines: torch.Tensor, grids: list[tuple[int, int]], side: int) -> list[Patches]:
    """The patches of each image. newlines: bool [n] on the host, of all tokens of one or more images.

    grids: (rows, columns) of the patches that the tiles may have; side: of a view. An image of one view has a newline
    at its end, or none. The overview that follows an image's last row is told by its side^2 tokens without a newline.
    """
    images, start, ends = [], 0, newlines.nonzero().flatten().tolist()
    while start < len(newlines):
        start, widths = start + side**2, []
        for end in (end for end in ends if end >= start):
            if (width := end - start) >= side**2 or 0 in widths:
                break
            widths.append(width)
            start = end + 1
        tiles, count = torch.full([len(widths)], -1), side**2
        if any(widths):
            tiles, count = _tile_patches(len(widths), widths[0], grids, side)
        images.append((torch.cat([torch.arange(side**2), tiles]), count))
    return images


def _tile_patches(rows: int, columns: int, grids: list[tuple[int, int]], side: int) -> Patches:
    """The same of the tiles alone, of `rows` rows of `columns` tokens and a newline.

    Padding is cut off on two opposite sides alone, so that one dimension is whole; of the grids that fit it, the model
    takes the smallest, and among equals the first.
    """
    fits = [g for g in grids if (rows == g[0] and columns <= g[1]) or (columns == g[1] and rows <= g[0])]
    high, wide = min(fits, key=lambda grid: grid[0] * grid[1])
    row = torch.arange(rows)[:, None] + (high - rows) // 2
    column = torch.arange(columns) + (wide - columns) // 2
    view = row // side * (wide // side) + column // side + 1
    numbers = (view * side + row % side) * side + column % side
    return torch.nn.functional.pad(numbers, (0, 1), value=-1).flatten(), side**2 + high * wide


def joined(images: list[Patches]) -> torch.Tensor:
    """LongTensor [tokens, 1] of several images' patches, counted on from image to image."""
    total, parts = 0, []
    for numbers, count in images:
        parts.append(torch.where(numbers < 0, numbers, numbers + total))
        total += count
    return torch.cat(parts)[:, None]


def views(numbers: torch.Tensor, side: int) -> torch.Tensor:
    """LongTensor [tokens]: the view, from 1, of each patch; a newline belongs to the tile that its row ends in."""
    found = numbers // side**2 + 1
    return torch.where(found > 0, found, found.roll(1))


def grid(images: list[Patches], spans: torch.Tensor, side: int) -> torch.Tensor | None:
    """What `Family.grid` returns, of the patches of all images: places in the view that they come from, a
    newline at the end of its row; None: of other tokens than these."""
    numbers, mask = torch.cat([torch.zeros(0, dtype=torch.long), *(each for each, _ in images)]), spans > 0
    if len(numbers) != int(mask.sum()):
        return None
    place = torch.where(numbers < 0, numbers.roll(1), numbers) % side**2
    result = torch.zeros(*spans.shape, 4, dtype=torch.long)
    column = torch.where(numbers < 0, side, place % side)
    result[mask] = torch.stack([torch.zeros_like(place), place // side, column, spans[mask] - 1], 1)
    return result
