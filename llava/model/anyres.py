"""LLaVA-NeXT's "anyres" images: an overview plus tiles of the best-fitting grid, merged into one image again."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image


def is_anyres(config: Any) -> bool:
    """LLaVA-NeXT: images in tiles, as the checkpoint's config says."""
    return getattr(config, "image_aspect_ratio", None) == "anyres"


def parse_pinpoints(pinpoints: str | Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The config's `image_grid_pinpoints` as (width, height) pairs; old configs store them as text."""
    pairs = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
    return [(int(width), int(height)) for width, height in pairs]


def select_best_resolution(size: tuple[int, int], resolutions: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (width, height) that keeps most of the image's pixels, and among equals wastes the least area."""

    def fit(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[0] / size[0], resolution[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=fit)


def resize_and_pad_image(image: Image.Image, resolution: tuple[int, int]) -> Image.Image:
    """The image scaled to fit `resolution` (width, height), centred on black."""
    (width, height), (target_width, target_height) = image.size, resolution
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        new_width, new_height = target_width, min(math.ceil(height * scale_width), target_height)
    else:
        new_width, new_height = min(math.ceil(width * scale_height), target_width), target_height
    canvas = Image.new("RGB", resolution, (0, 0, 0))
    canvas.paste(
        image.resize((new_width, new_height)), ((target_width - new_width) // 2, (target_height - new_height) // 2)
    )
    return canvas


def process_anyres_image(image: Image.Image, processor: Any, pinpoints: str | Sequence[Sequence[int]]) -> torch.Tensor:
    """float32 [1 + tiles, 3, side, side]: the whole image squeezed to a square, then the tiles row by row."""
    resolution = select_best_resolution(image.size, parse_pinpoints(pinpoints))
    padded = resize_and_pad_image(image, resolution)
    side = processor.crop_size["height"]
    overview_side = processor.size["shortest_edge"]
    views = [image.resize((overview_side, overview_side))]
    for top in range(0, resolution[1], side):
        views += [padded.crop((left, top, left + side, top + side)) for left in range(0, resolution[0], side)]
    return torch.cat([processor(view, return_tensors="pt")["pixel_values"] for view in views])


def unpad(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut the padding off features [C, H, W] of an image of `size` (width, height)."""
    height, width = features.shape[1:]
    if size[0] / size[1] > width / height:
        rows = (height - int(size[1] * (width / size[0]))) // 2
        return features[:, rows : height - rows, :]
    columns = (width - int(size[0] * (height / size[1]))) // 2
    return features[:, :, columns : width - columns]


def merge_tiles(
    features: torch.Tensor,
    size: tuple[int, int],
    pinpoints: str | Sequence[Sequence[int]],
    tile_side: int,
    newline: torch.Tensor | None,
) -> torch.Tensor:
    """[1 + tiles, patches, C] -> [tokens, C]: the overview, then the tiles as one image.

    size: (width, height) of the original. newline [C]: "spatial_unpad" (padding cut, newline after each row); None:
    "spatial".
    """
    overview, tiles = features[0], features[1:]
    side = int(overview.shape[0] ** 0.5)
    if len(tiles) == 0:
        return overview if newline is None else torch.cat([overview, newline[None].to(overview)])
    width, height = select_best_resolution(size, parse_pinpoints(pinpoints))
    rows, columns = height // tile_side, width // tile_side
    grid = tiles.view(rows, columns, side, side, -1)
    picture = grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * side, columns * side)
    if newline is not None:
        picture = unpad(picture, size)
        picture = torch.cat([picture, newline.to(picture)[:, None, None].expand(-1, picture.shape[1], 1)], dim=2)
        merged = picture.flatten(1).T
    else:
        merged = grid.permute(0, 2, 1, 3, 4).flatten(0, 3)
    return torch.cat([overview, merged])


def view_ids(
    views: int,
    patches: int,
    size: tuple[int, int],
    pinpoints: str | Sequence[Sequence[int]],
    tile_side: int,
    unpad_rows: bool,
) -> torch.Tensor:
    """LongTensor [tokens]: from which view (1 = overview, then the tiles) each token of `merge_tiles` comes.

    views, patches: of the image and of each view. A newline belongs to the tile that its row ends in.
    """
    numbers = torch.arange(1.0, views + 1)[:, None, None].expand(views, patches, 1)
    merged = merge_tiles(numbers, size, pinpoints, tile_side, torch.zeros(1) if unpad_rows else None)[:, 0].long()
    return torch.where(merged > 0, merged, merged.roll(1))


def picture_tokens(pixels: torch.Tensor, size: tuple[int, int], config: Any, tower: Any) -> int:
    """Visual tokens of an image of `size` (width, height) that is given as `pixels` [3, H, W] or [tiles, 3, H, W].

    config: the LLaVA checkpoint's; tower: CLIP's vision config.
    """
    class_first = getattr(config, "mm_vision_select_feature", "patch") == "cls_patch"
    patches = (tower.image_size // tower.patch_size) ** 2 + class_first
    merge = getattr(config, "mm_patch_merge_type", "flat")
    if pixels.ndim == 3 or merge == "flat":
        return patches * (1 if pixels.ndim == 3 else len(pixels))
    return len(view_ids(len(pixels), patches, size, config.image_grid_pinpoints, tower.image_size, "unpad" in merge))
