"""Training sequences in Qwen's chat format: what precedes the questions, with M-RoPE positions, and the questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from dev.tiny.batches import IGNORE, Packer
from dev.tiny.questions import Question, prompt_of
from dev.tiny.qwen.pictures import Grid
from dev.tiny.qwen.tokenizer import SYSTEM

OPENING = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
BETWEEN = "<|vision_end|><|vision_start|>"
TURN = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"


class ChatPacker(Packer):
    """Tokenizes questions as the user's turn after the images."""

    def __init__(self, tokenizer: Tokenizer):
        self.prefix, self.between = tokenizer.encode(OPENING).ids, tokenizer.encode(BETWEEN).ids
        self.filler, self.end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
        self.chat = tokenizer
        self._cache: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.chat.encode(text).ids
        return self._cache[text]

    def turn(self, question: Question, brief: bool = False) -> tuple[list[int], list[int]]:
        asked = self._encode(TURN.format(prompt_of(question.text, question.request)))
        answer = [*self._encode(question.answer), self.end]
        return asked + answer, [IGNORE] * len(asked) + answer


@dataclass(frozen=True)
class Visual:
    """An image or video of every row: tokens float [B, N, D], the thing each belongs to int64 [B, N], its place.

    places: int64 [3, B, N], (time, row, column); sites: float [B, N, C], the place in the code of `dev.tiny.codes`;
    extent: how far the positions after it are moved.
    """

    tokens: torch.Tensor
    owners: torch.Tensor
    places: torch.Tensor
    sites: torch.Tensor
    extent: int


def places_of(grid: Grid, times: Sequence[int], size: int) -> torch.Tensor:
    """int64 [3, size, N] of `len(times)` grids one after the other."""
    axes = (torch.tensor(times), torch.arange(grid.rows), torch.arange(grid.columns))
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)[:, None].expand(-1, size, -1)


def thin(visual: Visual, keep: torch.Tensor) -> Visual:
    """Only the tokens `keep` int64 [B, K]; they stay where they were."""
    return Visual(
        visual.tokens.gather(1, keep[..., None].expand(-1, -1, visual.tokens.shape[-1])),
        visual.owners.gather(1, keep),
        visual.places.gather(2, keep.expand(3, -1, -1)),
        visual.sites.gather(1, keep[..., None].expand(-1, -1, visual.sites.shape[-1])),
        visual.extent,
    )


@dataclass(frozen=True)
class Head:
    """What precedes the questions: embeddings [B, P, D], positions [3, B, P], owners [B, P], sites [B, P, C] (NaN for
    text); the questions begin at `begin`."""

    embeddings: torch.Tensor
    positions: torch.Tensor
    owners: torch.Tensor
    sites: torch.Tensor
    begin: int


def head_of(embed: torch.nn.Embedding, packer: ChatPacker, visuals: Sequence[Visual]) -> Head:
    """The opening, then the visuals with their marks between."""
    size, at = len(visuals[0].tokens), 0
    embeddings, positions, owners, sites = [], [], [], []
    codes = visuals[0].sites.shape[-1]

    def text(ids: list[int]) -> int:
        device = visuals[0].tokens.device
        embeddings.append(embed(torch.tensor(ids, device=device)).expand(size, -1, -1))
        positions.append((at + torch.arange(len(ids), device=device)).expand(3, size, -1))
        owners.append(torch.full((size, len(ids)), -1, device=device))
        sites.append(torch.full((size, len(ids), codes), torch.nan, device=device))
        return at + len(ids)

    for k, visual in enumerate(visuals):
        at = text(packer.between if k else packer.prefix)
        embeddings.append(visual.tokens.to(embed.weight.dtype))
        positions.append(at + visual.places)
        owners.append(visual.owners)
        sites.append(visual.sites)
        at += visual.extent
    return Head(torch.cat(embeddings, 1), torch.cat(positions, 2), torch.cat(owners, 1), torch.cat(sites, 1), at)
