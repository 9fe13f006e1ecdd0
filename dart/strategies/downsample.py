"""Downsample: smaller images, and all of their tokens (control)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dart.config import DartConfig
from dart.strategies.base import Stage, Strategy, register

if TYPE_CHECKING:
    from PIL.Image import Image

BICUBIC = 3  # of PIL.Image.Resampling


@register("downsample")
class Downsample(Strategy):
    """Images are made smaller by 1/D per side, bicubic, where 1/D^2 is the share of the tokens that the budget leaves
    (arXiv 2510.07143); nothing is dropped in the decoder. Give `PruneHandle.prepare(images)` to the processor.

    The processor rounds sides as it does for any image, so that the tokens are near the budget; `PruneHandle.last` has
    the true count. Processors with a fixed resolution (LLaVA-1.5) enlarge the image again: that blurs it and saves
    nothing. The budget must be a fraction: how many tokens an image has is known to the processor alone.
    """

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        if isinstance(config.keep, int) or not config.budget(1):
            raise ValueError("strategy 'downsample' needs a fraction: keep between 0 and 1, or reduction_ratio below 1")
        return ()

    def pixels(self, image: Image, config: DartConfig) -> Image:
        factor = config.budget(1) ** 0.5
        return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), BICUBIC)
