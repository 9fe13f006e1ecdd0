"""LLaVA's data file and its pictures as training samples and batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm import tqdm

from dart.utils import UserError
from llava.constants import IGNORE_INDEX
from llava.conversation import Conversation
from llava.files import read_json
from llava.mm_utils import load_image, process_images
from llava.model.anyres import picture_tokens
from llava.train.conversations import BadSample, cut, tokenize, turns_of, with_images_first, write_prompt

NAMED = 3  # samples that one message names
PADDING_ID = 0  # of slots that the attention mask leaves out: never looked up


@dataclass(frozen=True)
class Encoder:
    """How a row becomes tensors. config: of the model, with the image settings; limit: tokens, images counted."""

    tokenizer: Any
    processor: Any
    config: Any
    tower: Any
    template: Conversation
    limit: int
    folder: Path

    def pictures(self, row: dict[str, Any]) -> list[Path]:
        """The row's picture files, none for a row of text. Raises BadSample for names that are none."""
        given = row.get("image") or []
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadSample(f'"image" must be a file name or a list of them, got {given!r} in row {row.get("id")!r}')
        return [self.folder / name for name in names]

    def __call__(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """One sample: input_ids, labels LongTensor [S]; of each image [3, H, W] or [tiles, 3, H, W], (width, height).

        Raises BadSample naming the row.
        """
        turns, files = turns_of(row, name), self.pictures(row)
        if files:
            turns = with_images_first(turns, len(files), name)
        tokens = tokenize(write_prompt(turns, self.template, name), self.tokenizer, len(files), name)
        try:
            images = [load_image(str(file)) for file in files]
        except (OSError, ValueError) as error:
            raise BadSample(f"{name}: {error}") from error
        pixels = list(process_images(images, self.processor, self.config)) if images else []
        sizes = [image.size for image in images]
        counts = [picture_tokens(*each, self.config, self.tower) for each in zip(pixels, sizes, strict=True)]
        tokens, seen = cut(tokens, counts, self.limit, name)
        return {
            "input_ids": tokens.ids,
            "labels": tokens.labels,
            "images": pixels[:seen],
            "image_sizes": sizes[:seen],
        }


class Conversations(Dataset):
    """The rows of a data file that can be trained on; `left_out` names those without their pictures.

    skip: leave out rows that cannot be read or learned from, instead of a UserError or BadSample. What only shows when
    a row is read (a broken picture, a label that does not fit) is then replaced by the next good row of its modality,
    and named in the sample's "skipped".
    """

    def __init__(self, path: str, encoder: Encoder, skip: bool = False):
        rows = read_json(path)
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} (--data_path) must be a JSON list of conversations: see docs/training.md")
        self.encoder, self.skip, self.path = encoder, skip, path
        self.left_out = self._without_pictures(rows)
        if self.left_out and not skip:
            raise UserError(
                f"{len(self.left_out)} of {len(rows)} rows of {path} have pictures that are not in {encoder.folder} "
                f"(--image_folder): {_some(self.left_out)}; --on_bad_sample skip trains without them"
            )
        self.places = [place for place in range(len(rows)) if place not in self.left_out]
        self.rows = rows
        if not self.places:
            raise UserError(f"{path}: no row is left whose pictures are in {encoder.folder} (--image_folder)")

    def _without_pictures(self, rows: list[dict[str, Any]]) -> dict[int, str]:
        """Row -> its name and first missing file."""
        found: dict[str, set[str]] = {}

        def there(file: Path) -> bool:
            folder = str(file.parent)
            if folder not in found:  # one listing a folder is quicker than a look at every file of it
                found[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            return file.name in found[folder]

        missing = {}
        for place, row in enumerate(tqdm(rows, "pictures", disable=len(rows) < 100_000)):
            gone = [file for file in self.encoder.pictures(row) if not there(file)]
            if gone:
                missing[place] = f"{_name(row, place)} ({gone[0].name})"
        return missing

    def __len__(self) -> int:
        return len(self.places)

    @property
    def modality_lengths(self) -> list[int]:
        """Words of every sample, negative for text alone, as LLaVA's sampler counts them."""
        return [self._length(self.rows[place]) for place in self.places]

    def _length(self, row: dict[str, Any]) -> int:
        turns = row.get("conversations")
        texts = [str(turn.get("value", "")) for turn in turns if isinstance(turn, dict)] if turns else []
        words = max(1, sum(len(text.split()) for text in texts))
        return words if self.encoder.pictures(row) else -words

    def __getitem__(self, number: int) -> dict[str, Any]:
        skipped: list[str] = []
        modality = bool(self.encoder.pictures(self.rows[self.places[number]]))
        for step in range(len(self)):
            place = self.places[(number + step) % len(self)]
            row = self.rows[place]
            if bool(self.encoder.pictures(row)) != modality:
                continue
            try:
                return {**self.encoder(row, _name(row, place)), "skipped": skipped}
            except BadSample as error:
                if not self.skip:
                    raise BadSample(f"{error} (--on_bad_sample skip goes on without it)") from error
                skipped.append(str(error))
        raise UserError(f"{self.path}: no sample can be learned from: {_some(dict(enumerate(skipped)))}")


def _name(row: dict[str, Any], place: int) -> str:
    return f"sample {row['id']!r}" if "id" in row else f"sample number {place}"


def _some(names: dict[int, str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(list(names.values())[:NAMED]) + more


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch for LLaVA's forward, padded on the right: input_ids, attention_mask, labels LongTensor [B, S].

    images and image_sizes are those of all samples in their order, None for a batch of text; skipped: what
    `Conversations` left out.
    """

    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value)

    images = [image for sample in samples for image in sample["images"]]
    return {
        "input_ids": padded([sample["input_ids"] for sample in samples], PADDING_ID),
        "attention_mask": padded([torch.ones_like(sample["input_ids"]) for sample in samples], 0),
        "labels": padded([sample["labels"] for sample in samples], IGNORE_INDEX),
        "images": images or None,
        "image_sizes": [size for sample in samples for size in sample["image_sizes"]] or None,
        "skipped": [name for sample in samples for name in sample["skipped"]],
    }
