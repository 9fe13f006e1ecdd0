"""Images and prompts on their way into the model."""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.model.anyres import is_anyres, process_anyres_image

URL_TIMEOUT_SECONDS = 20
URL_MOST_BYTES = 64 << 20
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # PIL refuses from here on
LONGEST_ASPECT = 200  # long side to short side, as Qwen's image processors


def load_image(path: str) -> Image.Image:
    """An image (file path or http(s) URL) as RGB, EXIF rotation ignored as LLaVA does.

    Raises FileNotFoundError for a missing file, ValueError for one that is truncated or not an image; both name it.
    """
    source: Any = path
    if str(path).startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(path, timeout=URL_TIMEOUT_SECONDS) as response:
                data = response.read(URL_MOST_BYTES + 1)
        except (urllib.error.URLError, OSError) as error:
            raise ValueError(
                f"image {path} could not be fetched ({error}): check the address and the network"
            ) from error
        if len(data) > URL_MOST_BYTES:
            raise ValueError(f"image {path} is larger than {URL_MOST_BYTES >> 20} MiB: give the path of a smaller one")
        source = io.BytesIO(data)
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"image file {path} does not exist: give the path of a picture")
    return read_image(source, f"image file {path}")


def read_image(source: Any, name: str) -> Image.Image:
    """An encoded image (a path or a file object) as RGB. Raises ValueError that begins with `name`.

    Refused are images that are damaged, that unpack to more than PIL's limit, or that would when they are padded to a
    square or their short side is brought to the vision tower's.
    """
    try:
        with Image.open(source) as image:
            long, short = max(image.size), min(image.size)
            if long**2 > MOST_PIXELS or long > LONGEST_ASPECT * short:
                raise ValueError(
                    f"its sides of {image.width} x {image.height} pixels are more than {int(MOST_PIXELS**0.5)} or "
                    f"{LONGEST_ASPECT} to 1"
                )
            return image.convert("RGB")
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise ValueError(
            f"{name} cannot be read ({error}): it is truncated, too large or not a picture, replace it"
        ) from error


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """The image centred on a square of its longer side, filled with `background_color`."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> torch.Tensor | list[torch.Tensor]:
    """Images -> float32 [N, 3, H, W], or for anyres a list of [tiles, 3, H, W] (stacked when all have equal tiles).

    `model_cfg.image_aspect_ratio`: "pad" (square in the mean colour), "anyres" (tiles), anything else: resize and crop.
    """
    if is_anyres(model_cfg):
        pixels = [process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
        return torch.stack(pixels) if len({len(p) for p in pixels}) == 1 else pixels
    if getattr(model_cfg, "image_aspect_ratio", None) == "pad":
        color = tuple(int(channel * 255) for channel in image_processor.image_mean)
        images = [expand2square(image, color) for image in images]
    return torch.cat([image_processor(image, return_tensors="pt")["pixel_values"] for image in images])


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Token ids of `prompt` with `image_token_index` for every `<image>`: a list, or LongTensor [S] with "pt".

    The text between images is tokenised piece by piece and the BOS stays only at the front.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
    ids: list[int] = []
    for number, piece in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        piece_ids = tokenizer(piece).input_ids
        has_bos = bool(piece_ids) and piece_ids[0] == tokenizer.bos_token_id
        if number:
            ids.append(image_token_index)
        ids += piece_ids[1:] if number and has_bos else piece_ids
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


def get_model_name_from_path(model_path: str) -> str:
    """The last folder's name; for `.../name/checkpoint-N` both. Only a label: the config decides what is loaded."""
    parts = str(model_path).strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") and len(parts) > 1 else parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops each row once its answer so far contains one of `keywords`.

    input_ids: the prompt that `generate` returns in front of the answer, or None when only new tokens come back (as
    LLaVA's `generate` does).
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor | None = None):
        self.keywords = [word for word in keywords if word]
        self.tokenizer = tokenizer
        self.start = 0 if input_ids is None else input_ids.shape[1]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        start = self.start if input_ids.shape[1] > self.start else 0
        texts = [self.tokenizer.decode(row[start:], skip_special_tokens=False) for row in input_ids]
        found = [any(word in text for word in self.keywords) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)
