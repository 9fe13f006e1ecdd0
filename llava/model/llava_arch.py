"""Merging picture features into the token stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@dataclass
class Merged:
    """inputs_embeds [B, S, D]; attention_mask [B, S] long; labels [B, S] or None; visual_span_ids [B, S] (0 text, k = k-th picture)."""

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None
    visual_span_ids: torch.Tensor


class LlavaMetaForCausalLM:
    """Mixed into the causal language model: encodes pictures and places them where the prompt has `<image>`."""

    config: Any
    model: Any

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> Any:
        return self.model.vision_tower

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, H, W] -> [n, patches, hidden_size]."""
        features = self.model.vision_tower(images)
        weight = next(self.model.mm_projector.parameters(), features)
        return self.model.mm_projector(features.to(weight.device, weight.dtype))

    def merge(
        self, input_ids: torch.Tensor, images: torch.Tensor | list[torch.Tensor], attention_mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> Merged:
        """Replace every image id of `input_ids` [B, S] by a picture's features, in order.

        Rows may hold any number of pictures, also none. Padding moves to the left, so that the last position of every row is its last token.
        Raises ValueError when pictures and image ids do not match.
        """
        features = list(self.encode_images(images if isinstance(images, torch.Tensor) else torch.cat([i.reshape(-1, *i.shape[-3:]) for i in images])))
        wanted = int((input_ids == IMAGE_TOKEN_INDEX).sum())
        if wanted != len(features):
            raise ValueError(f"the prompts have {wanted} <image> places but {len(features)} pictures were given")
        rows = []
        for b, ids in enumerate(input_ids):
            seen = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask[b].bool()
            row_labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels[b]
            rows.append(self._merge_row(ids[seen], row_labels[seen], features))
        embeds, spans, targets = zip(*rows, strict=True)
        lengths = torch.tensor([len(s) for s in spans], device=input_ids.device)
        positions = torch.arange(int(lengths.max()), device=input_ids.device)
        mask = (positions >= lengths.max() - lengths[:, None]).long()

        def padded(values: tuple[torch.Tensor, ...], fill: float) -> torch.Tensor:
            return pad_sequence(list(values), batch_first=True, padding_value=fill, padding_side="left")

        return Merged(padded(embeds, 0.0), mask, None if labels is None else padded(targets, IGNORE_INDEX), padded(spans, 0))

    def _merge_row(self, ids: torch.Tensor, labels: torch.Tensor, features: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """(embeds [S, D], span ids [S], labels [S]) of one row; takes its pictures from the front of `features`."""
        places = [-1, *torch.where(ids == IMAGE_TOKEN_INDEX)[0].tolist(), len(ids)]
        embeds, spans, targets = [], [], []
        for k, (begin, end) in enumerate(zip(places, places[1:], strict=False), 1):
            text = slice(begin + 1, end)
            embeds.append(self.model.embed_tokens(ids[text]))
            spans.append(torch.zeros_like(ids[text]))
            targets.append(labels[text])
            if end < len(ids):
                picture = features.pop(0).to(embeds[0].device, embeds[0].dtype)
                embeds.append(picture)
                spans.append(ids.new_full((len(picture),), k))
                targets.append(ids.new_full((len(picture),), IGNORE_INDEX))
        return torch.cat(embeds), torch.cat(spans), torch.cat(targets)
