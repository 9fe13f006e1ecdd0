"""From a question to the model's inputs: the one place that writes image placeholders and encodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import get_template
from llava.mm_utils import process_images, tokenizer_image_token


@dataclass(frozen=True)
class Batch:
    """Prompts and their images.

    ids, mask: LongTensor [B, S], padded on the left. images: [N, 3, H, W], or N tensors [tiles, 3, H, W], or None
    without images; sizes: (width, height) of each original image.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    images: torch.Tensor | list[torch.Tensor] | None
    sizes: list[tuple[int, int]]

    def inputs(self, model: Any) -> dict[str, Any]:
        """The arguments of `generate` of a LLaVA model: on its device, images in its dtype."""
        place, images = {"device": model.device, "dtype": model.dtype}, self.images
        if images is not None:
            images = images.to(**place) if isinstance(images, torch.Tensor) else [each.to(**place) for each in images]
        return {
            "inputs": self.ids.to(model.device),
            "attention_mask": self.mask.to(model.device),
            "images": images,
            "image_sizes": self.sizes or None,
        }


@dataclass(frozen=True)
class Encoded:
    """One prompt: ids LongTensor [S]; a tensor [3, H, W] or [tiles, 3, H, W] and a (width, height) for each image."""

    ids: torch.Tensor
    images: list[torch.Tensor]
    sizes: list[tuple[int, int]]


def user_turn(text: str, images: int, config: Any) -> str:
    """The user's turn: a placeholder per image, as the checkpoint marks them, then the text."""
    place = DEFAULT_IMAGE_TOKEN
    if getattr(config, "mm_use_im_start_end", False):
        place = DEFAULT_IM_START_TOKEN + place + DEFAULT_IM_END_TOKEN
    return f"{place}\n" * images + text


def build_prompt(question: str, config: Any, mode: str, images: int = 1) -> str:
    """The whole prompt of one question about `images` images."""
    conversation = get_template(mode)
    conversation.append_message(conversation.roles[0], user_turn(question, images, config))
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def encode(prompt: str, images: Sequence[Image.Image], tokenizer: Any, processor: Any, config: Any) -> Encoded:
    """A prompt whose placeholders are those of `images`."""
    ids = torch.tensor(tokenizer_image_token(prompt, tokenizer), dtype=torch.long)
    pixels = list(process_images(images, processor, config)) if images else []
    return Encoded(ids, pixels, [image.size for image in images])


def collate(rows: Sequence[Encoded]) -> Batch:
    """Prompts of different lengths as one batch."""
    left: dict[str, Any] = {"batch_first": True, "padding_side": "left"}
    ids = pad_sequence([row.ids for row in rows], **left)
    mask = pad_sequence([torch.ones_like(row.ids) for row in rows], **left)
    pixels = [image for row in rows for image in row.images]
    images: torch.Tensor | list[torch.Tensor] | None = pixels or None
    if pixels and len({image.shape for image in pixels}) == 1:
        images = torch.stack(pixels)
    return Batch(ids, mask, images, [size for row in rows for size in row.sizes])
