"""LLaVA's own checkpoint format for `python -m dart`: an entry point of the group `dart.loaders`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig

from dart.cli.loading import Prompt
from dart.media import Video
from dart.utils import UserError
from dart.views import Sources, find_views
from dart.viz import View
from llava.constants import IMAGE_TOKEN_INDEX

CONVERSATIONS = {"llava_llama": "vicuna_v1", "llava_mistral": "mistral_instruct", "llava_qwen": "qwen_1_5"}


def load(path: str, device: torch.device, dtype: str | None, attention: str | None) -> OriginalLlava | None:
    """The checkpoint in the folder or hub repository `path`; None if its model_type is not one of LLaVA's own."""
    kind = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    return OriginalLlava(path, CONVERSATIONS[kind], device, dtype, attention) if kind in CONVERSATIONS else None


class OriginalLlava:
    """Model, tokenizer and image processor of one checkpoint; `dart.cli.loading.Loaded` says what is asked of it."""

    def __init__(self, path: str, conversation: str, device: torch.device, dtype: str | None, attention: str | None):
        from llava.model.builder import load_pretrained_model

        self.tokenizer, self.model, self.processor, _ = load_pretrained_model(
            path, device=device, torch_dtype=dtype, attn_implementation=attention
        )
        self.conversation = conversation
        self.tower = self.model.get_vision_tower().tower.config
        self.side = self.tower.image_size // self.tower.patch_size
        self.class_first = getattr(self.model.config, "mm_vision_select_feature", "patch") == "cls_patch"

    def prompt(self, messages: list[dict[str, Any]], images: list[Image.Image], videos: list[Video]) -> Prompt:
        """The prompt of one user turn. Raises UserError for videos, which these models do not take."""
        from llava.eval.engine.prompts import build_prompt, collate, encode
        from llava.model.anyres import picture_tokens

        config = self.model.config
        if videos:
            raise UserError(f"models of type {config.model_type} take no videos: give the frames as --image")
        (turn,) = messages
        question = "".join(part["text"] for part in turn["content"] if part["type"] == "text")
        text = build_prompt(question, config, self.conversation, len(images))
        batch = collate([encode(text, images, self.tokenizer, self.processor, config)])
        if (places := int((batch.ids == IMAGE_TOKEN_INDEX).sum())) != len(images):
            raise UserError(
                f"the prompt has {places} image placeholders for {len(images)} images: is one in the question?"
            )
        pixels: Any = batch.images
        place = partial(torch.Tensor.to, device=self.model.device, dtype=self.model.dtype)
        inputs = {
            "input_ids": batch.ids.to(self.model.device),
            "attention_mask": batch.mask.to(self.model.device),
            "images": [place(each) for each in pixels] if isinstance(pixels, list) else place(pixels),
            "image_sizes": batch.sizes,
        }
        pairs = zip(pixels, batch.sizes, strict=True)
        counts = [picture_tokens(each, size, config, self.tower) for each, size in pairs]
        return Prompt(
            inputs, 0, _positions(batch.ids[0].tolist(), counts), partial(self._views, images, counts, pixels)
        )

    def _views(self, images: list[Image.Image], counts: list[int], pixels: Any) -> list[View]:
        mean, std = self.processor.image_mean, self.processor.image_std
        merges = "unpad" in getattr(self.model.config, "mm_patch_merge_type", "flat")
        names, frames = [f"image {k + 1}" for k in range(len(images))], [[image] for image in images]
        given = {"pixel_values": pixels}
        return find_views(
            Sources("image", names, frames, counts, given, mean, std, self.side, merges, class_first=self.class_first)
        )


def _positions(ids: list[int], counts: list[int]) -> list[int]:
    """Where the visual tokens are once every placeholder is replaced by its image's `counts`."""
    positions: list[int] = []
    length, rest = 0, iter(counts)
    for token in ids:
        count = next(rest) if token == IMAGE_TOKEN_INDEX else 1
        if token == IMAGE_TOKEN_INDEX:
            positions += range(length, length + count)
        length += count
    return positions
