"""The multimodal half of LLaVA: pictures to features, features into the token stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from dart.engine.host import to_device
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.anyres import merge_tiles, view_ids
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector

Images = torch.Tensor | Sequence[torch.Tensor]


@dataclass
class Merged:
    """Text and pictures as one sequence of embeddings; S counts visual tokens too.

    inputs_embeds [B, S, D]; attention_mask LongTensor [B, past + S] or None without padding; position_ids LongTensor
    [B, S] or None (then consecutive); labels LongTensor [B, S] or None; visual_span_ids LongTensor [B, S] on the CPU,
    where it is read: 0 = text or padding, k = the row's k-th visual span (a picture, or a view of an anyres picture);
    None without pictures.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    labels: torch.Tensor | None
    visual_span_ids: torch.Tensor | None


@dataclass
class _Row:
    embeds: torch.Tensor
    spans: torch.Tensor
    labels: torch.Tensor


def add_vision_modules(module: nn.Module, config: Any) -> None:
    """Give the text model LLaVA's `vision_tower`, `mm_projector` and, where the config unpads, `image_newline`."""
    if getattr(config, "mm_vision_tower", None) is None:
        return
    module.vision_tower = build_vision_tower(config)
    module.mm_projector = build_vision_projector(config)
    if "unpad" in getattr(config, "mm_patch_merge_type", "flat"):
        # As large as an embedding of unit norm: a model that is made, not loaded, must not hold what memory held.
        module.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)


def _views(images: Images) -> list[torch.Tensor]:
    """[views, 3, H, W] of every picture. Raises ValueError for other shapes."""
    views = [image[None] if image.ndim == 3 else image for image in images]
    for view in views:
        if view.ndim != 4:
            raise ValueError(
                f"images must be [N, 3, H, W] or a list of [3, H, W] / [tiles, 3, H, W], got {list(view.shape)}"
            )
    return views


def _pad(rows: list[torch.Tensor], value: float, side: str) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


class LlavaMetaForCausalLM:
    """Mixed into the causal model; expects `self.model` with the modules of `add_vision_modules`."""

    model: Any
    config: Any

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> CLIPVisionTower | None:
        return getattr(self.model, "vision_tower", None)

    def encode_images(self, images: Images, image_sizes: Sequence[Sequence[int]] | None = None) -> list[torch.Tensor]:
        """One [tokens, D] tensor per picture.

        images: [N, 3, H, W], or a sequence of N tensors [3, H, W] or [tiles, 3, H, W]; image_sizes: (width, height) of
        each original picture, needed for anyres checkpoints.
        """
        tower = self.get_vision_tower()
        if tower is None:
            raise ValueError("this checkpoint has no vision tower (mm_vision_tower is not set): it cannot take images")
        views = _views(images)
        target = self.model.embed_tokens.weight
        pixels = torch.cat([view.to(target.device) for view in views])
        projected = self.model.mm_projector(tower(pixels).to(target.dtype))
        per_picture = projected.split([len(view) for view in views])
        tiled = [image.ndim == 4 for image in images]
        return [
            self._one_picture(f, t, n, image_sizes) for n, (f, t) in enumerate(zip(per_picture, tiled, strict=True))
        ]

    def learns_to_see(self) -> bool:
        """Is this a training step that must reach the vision modules, also from a batch without pictures?

        Several processes add up their gradients: one whose batch is text alone has to bring zeros, or the others wait.
        """
        seeing = [getattr(self.model, name, None) for name in ("mm_projector", "vision_tower")]
        parts = [part for module in seeing if module is not None for part in module.parameters()]
        return self.training and torch.is_grad_enabled() and any(part.requires_grad for part in parts)

    def _no_tokens(self) -> torch.Tensor:
        """[0, D]: nothing of a blank picture, with the vision modules in its history."""
        side = self.model.vision_tower.tower.config.image_size
        blank = self.model.embed_tokens.weight.new_zeros(1, 3, side, side)
        parts = [*self.encode_images(blank), getattr(self.model, "image_newline", None)]
        return torch.cat([part.reshape(-1, self.config.hidden_size)[:0] for part in parts if part is not None])

    def _span_ids(
        self, images: Images, features: list[torch.Tensor], sizes: Sequence[Sequence[int]] | None
    ) -> list[torch.Tensor]:
        """For every picture a LongTensor [tokens] on the CPU: 1, or the number of the view for pictures in tiles."""
        tower = self.model.vision_tower.tower.config
        merge = getattr(self.config, "mm_patch_merge_type", "flat")
        ids = []
        for number, (image, picture) in enumerate(zip(images, features, strict=True)):
            count = len(image) if image.ndim == 4 else 1
            if count == 1:
                ids.append(torch.ones(len(picture), dtype=torch.long))
            elif merge == "flat" or sizes is None:
                ids.append(torch.arange(1, count + 1).repeat_interleave(len(picture) // count))
            else:
                patches = (tower.image_size // tower.patch_size) ** 2
                size = (int(sizes[number][0]), int(sizes[number][1]))
                grid, unpads = self.config.image_grid_pinpoints, "unpad" in merge
                ids.append(view_ids(count, patches, size, grid, tower.image_size, unpads))
        return ids

    def _one_picture(
        self, features: torch.Tensor, tiled: bool, number: int, sizes: Sequence[Sequence[int]] | None
    ) -> torch.Tensor:
        merge = getattr(self.config, "mm_patch_merge_type", "flat")
        if not tiled or merge == "flat":
            return features.flatten(0, 1)
        if not merge.startswith("spatial"):
            raise ValueError(
                f"config.json: mm_patch_merge_type {merge!r} is not supported; known: flat, spatial, spatial_unpad"
            )
        if sizes is None or len(sizes) <= number:
            raise ValueError(
                "image_sizes is missing: anyres pictures need the (width, height) of each original picture"
            )
        newline = self.model.image_newline if "unpad" in merge else None
        side = self.model.vision_tower.tower.config.image_size
        width, height = sizes[number]
        return merge_tiles(features, (width, height), self.config.image_grid_pinpoints, side, newline)

    def merge(
        self,
        input_ids: torch.Tensor,
        images: Images | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        padding_side: str | None = None,
    ) -> Merged:
        """Replace every image placeholder (-200) of input_ids [B, S] by its picture's features, in order of the batch.

        attention_mask [B, S] marks padding; longer ones describe cached tokens first. padding_side: where rows are
        padded (default: `config.tokenizer_padding_side`, else right). Raises ValueError when placeholders and pictures
        differ in number.
        """
        size, length = input_ids.shape
        past = None
        if attention_mask is not None and attention_mask.shape[1] > length:
            past, attention_mask = attention_mask[:, :-length], attention_mask[:, -length:]
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        ids = [row[keep] for row, keep in zip(input_ids, valid, strict=True)]
        texts = [None] * size if labels is None else [row[keep] for row, keep in zip(labels, valid, strict=True)]
        # Read before the vision tower has work: behind it a read would wait for all of that.
        places = [(row == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist() for row in ids]
        wanted = sum(len(row) for row in places)
        given = 0 if images is None else len(images)
        if wanted != given:
            raise ValueError(
                f"the prompts have {wanted} image placeholder(s) but {given} image(s) were given: pass one per <image>"
            )
        pictures: Any = iter(())
        if images is not None and given:
            features = self.encode_images(images, image_sizes)
            pictures = zip(features, self._span_ids(images, features, image_sizes), strict=True)
        # Before the text is looked up, as pictures are: ZeRO adds gradients up in the order in which they appear.
        nothing = self._no_tokens() if not given and self.learns_to_see() else None
        words = self._embed(ids, places)
        rows = [self._merge_row(*row, pictures, words) for row in zip(ids, places, texts, strict=True)]
        if nothing is not None:
            rows[0].embeds = torch.cat([rows[0].embeds, nothing.to(rows[0].embeds)])
        side = padding_side or getattr(self.config, "tokenizer_padding_side", "right")
        return self._collate(rows, past, labels is not None, side)

    def _embed(self, rows: list[torch.Tensor], places: list[list[int]]) -> Iterator[torch.Tensor]:
        """The embeddings [tokens, D] of the pieces of text around every row's placeholders, row by row.

        In one look-up, however many pictures there are: under ZeRO-3 every process has to fetch the weights as often.
        """
        pieces = [
            row[start + 1 : end]
            for row, own in zip(rows, places, strict=True)
            for start, end in zip([-1, *own], [*own, len(row)], strict=True)
        ]
        return iter(self.model.embed_tokens(torch.cat(pieces)).split([len(piece) for piece in pieces]))

    def _merge_row(
        self, ids: torch.Tensor, places: list[int], labels: torch.Tensor | None, pictures: Any, words: Any
    ) -> _Row:
        """One row without padding: the next pieces of `words`, with the next pictures in `places` between them."""
        embeds, spans, targets = [], [], []
        labels = ids if labels is None else labels
        last = 0
        for number, (start, end) in enumerate(zip([-1, *places], [*places, len(ids)], strict=True)):
            if number:
                picture, views = next(pictures)
                embeds.append(picture)
                spans.append(views + last)
                last += int(views.max())
                targets.append(labels.new_full((len(picture),), IGNORE_INDEX))
            embeds.append(next(words))
            spans.append(torch.zeros(len(embeds[-1]), dtype=torch.long))
            targets.append(labels[start + 1 : end])
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        return _Row(torch.cat(embeds)[:limit], torch.cat(spans)[:limit], torch.cat(targets)[:limit])

    def _collate(self, rows: list[_Row], past: torch.Tensor | None, with_labels: bool, side: str) -> Merged:
        lengths = [len(row.spans) for row in rows]
        spans = _pad([row.spans for row in rows], 0, side)
        mask = to_device(_pad([torch.ones_like(row.spans) for row in rows], 0, side).numpy(), rows[0].embeds.device)
        padded = len(set(lengths)) > 1
        if past is not None:
            mask, padded = torch.cat([past.to(mask), mask], dim=1), True
        return Merged(
            inputs_embeds=_pad([row.embeds for row in rows], 0.0, side),
            attention_mask=mask if padded else None,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0)[:, -spans.shape[1] :] if padded else None,
            labels=_pad([row.labels for row in rows], IGNORE_INDEX, side) if with_labels else None,
            visual_span_ids=spans if any(bool((row.spans > 0).any()) for row in rows) else None,
        )
