"""From a question, pictures and videos to a transformers model's inputs, with what each visual token shows.

transformers' own processors need torchvision for the families with videos. These readers need Pillow alone: tokenizer,
chat template and settings are the checkpoint's, pictures go through transformers' Pillow processors.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer

from dart.cli.errors import UserError
from dart.cli.media import Video
from dart.viz import View

Tensors = dict[str, torch.Tensor]
TEMPLATES = ("chat_template.json", "processor_config.json")  # older checkpoints have it in one of these


@dataclass(frozen=True)
class Prompt:
    """inputs: keyword arguments of `generate`; skip: how many tokens in front of the answer it returns.

    positions: of the visual tokens, in the sequence that the decoder is given; views: what they show, in this order.
    """

    inputs: dict[str, Any]
    views: list[View]
    positions: list[int]
    skip: int


@dataclass(frozen=True)
class Visual:
    """A picture or a video: the text that stands for it in the prompt, and its views."""

    text: str
    views: list[View]


class Reader:
    """One family. `image_text` and `video_text` say what is in the prompt before it is expanded.

    folder: the checkpoint; config: the model's.
    """

    processor_class: tuple[str, str]  # (module of transformers.models, class)
    has_videos = False

    def __init__(self, folder: Path, config: Any):
        module, name = self.processor_class
        kind = getattr(importlib.import_module(f"transformers.models.{module}"), name)
        self.folder, self.config = folder, config
        self.processor: Any = kind.from_pretrained(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.template = _chat_template(folder, self.tokenizer)
        self.image_token = self.token(config.image_token_id)

    def token(self, number: int) -> str:
        """The text of a token id."""
        return str(self.tokenizer.convert_ids_to_tokens(number))

    @property
    def video_token(self) -> str:
        return self.token(self.config.video_token_id)

    def read(self, question: str, images: Sequence[Image.Image], videos: Sequence[Video]) -> Prompt:
        """The prompt of one question about pictures, then videos. Raises UserError for what the family cannot take."""
        if videos and not self.has_videos:
            raise UserError(f"models of type {self.config.model_type} take no videos: give the frames as --image")
        tensors: Tensors = {}
        visuals: list[Visual] = []
        if images:
            more, found = self.images(images)
            tensors, visuals = tensors | more, visuals + found
        if videos:
            more, found = self.videos(videos)
            tensors, visuals = tensors | more, visuals + found
        kinds = ["image"] * len(images) + ["video"] * len(videos)
        content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": question}]
        text = self._expand(self._chat(content), visuals)
        start = self.tokenizer.bos_token
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=not (start and text.startswith(start)))
        inputs = {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask, **tensors}
        views = [view for visual in visuals for view in visual.views]
        visual_ids = [self.config.image_token_id] + ([self.config.video_token_id] if self.has_videos else [])
        positions = torch.isin(ids.input_ids[0], torch.tensor(visual_ids)).nonzero().flatten().tolist()
        return Prompt(self.finish(inputs), views, positions, ids.input_ids.shape[1])

    def images(self, images: Sequence[Image.Image]) -> tuple[Tensors, list[Visual]]:
        raise NotImplementedError

    def videos(self, videos: Sequence[Video]) -> tuple[Tensors, list[Visual]]:
        raise NotImplementedError

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the family's model takes besides."""
        return inputs

    def image_pattern(self) -> str:
        return re.escape(self.image_token)

    def video_pattern(self) -> str:
        return re.escape(self.video_token)

    def _chat(self, content: list[dict[str, str]]) -> str:
        if self.template is None:
            raise UserError(f"{self.folder} has no chat template: expected chat_template.jinja or {TEMPLATES[0]} in it")
        turn = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(
            turn, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )

    def _expand(self, text: str, visuals: list[Visual]) -> str:
        patterns = [self.image_pattern()] + ([self.video_pattern()] if self.has_videos else [])
        found = re.findall("|".join(patterns), text)
        if len(found) != len(visuals):
            raise UserError(
                f"the chat template of {self.folder} makes {len(found)} placeholders of {len(visuals)} pictures and "
                "videos: expected one each (is there a placeholder in the question?)"
            )
        rest: Iterator[Visual] = iter(visuals)
        return re.sub("|".join(patterns), lambda _: next(rest).text, text)


def _chat_template(folder: Path, tokenizer: Any) -> str | None:
    for name in TEMPLATES:
        file = folder / name
        if file.is_file() and (found := json.loads(file.read_text(encoding="utf-8")).get("chat_template")):
            return found
    return tokenizer.chat_template


def middle_square(image: Image.Image) -> Image.Image:
    """What a processor that resizes the shorter side and crops leaves of a picture."""
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def padded_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of `color` (RGB)."""
    side, (width, height) = max(image.size), image.size
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
