"""Training batches: pictures (or their codes) with several independent questions packed behind each."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from PIL import Image

from scripts.tiny.codes import encode_labels
from scripts.tiny.model import CLIP_MEAN, CLIP_STD, IMAGE_PX
from scripts.tiny.questions import Question, prompt_of, sample_questions
from scripts.tiny.tokenizer import SYSTEM
from scripts.tiny.world import GRID, Scene, patch_labels, render, sample_scene

IGNORE = -100
MEAN_COLOR = tuple(int(255 * m) for m in CLIP_MEAN)


@dataclass
class Texts:
    """The text of a batch: `ids`, `labels`, `positions` int64 [B, T]; `mask` bool [B, 1, N+T, N+T].

    Every question sees the prefix, the picture and itself, at the positions it would have alone.
    """

    prefix: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


def preprocess(image: Image.Image) -> torch.Tensor:
    """Pad to a square, resize, normalise: float32 [3, 336, 336]."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), MEAN_COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy((pixels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).permute(2, 0, 1)


class Packer:
    """Tokenizes and packs questions as `vicuna_v1` prompts."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor):
        self.tokenizer = tokenizer
        self.prefix = [tokenizer.bos_id(), *tokenizer.encode(SYSTEM + " USER: ")]
        self._cache: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text)
        return self._cache[text]

    def turn(self, question: Question) -> tuple[list[int], list[int]]:
        """Token ids and labels of one question with its answer; only the answer is learned."""
        asked = self._encode(f"\n{prompt_of(question.text)} ASSISTANT:")
        answer = [*self._encode(question.answer), self.tokenizer.eos_id()]
        return asked + answer, [IGNORE] * len(asked) + answer

    def pack(self, questions: list[list[Question]], visual: int) -> Texts:
        turns = [[self.turn(q) for q in row] for row in questions]
        width = max(sum(len(ids) for ids, _ in row) for row in turns)
        head, size = len(self.prefix) + visual, len(turns)
        ids = torch.zeros(size, width, dtype=torch.long)
        labels = torch.full((size, width), IGNORE)
        positions = torch.zeros(size, width, dtype=torch.long)
        segment = torch.full((size, head + width), -1)
        segment[:, :head] = 0
        for b, row in enumerate(turns):
            at = 0
            for k, (tokens, targets) in enumerate(row):
                span = slice(at, at + len(tokens))
                ids[b, span], labels[b, span] = torch.tensor(tokens), torch.tensor(targets)
                positions[b, span] = torch.arange(head, head + len(tokens))
                segment[b, head + at : head + at + len(tokens)] = k + 1
                at += len(tokens)
        same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
        causal = torch.ones(head + width, head + width, dtype=torch.bool).tril()
        return Texts(torch.tensor(self.prefix), ids, labels, positions, (same & causal)[:, None])


def answer_loss(llm, visual: torch.Tensor, texts: Texts) -> tuple[torch.Tensor, float]:
    """(mean cross entropy of the answers, share of fully right answer tokens) for visual tokens [B, N, D]."""
    size, count = visual.shape[:2]
    embed = llm.model.embed_tokens
    prefix = embed(texts.prefix)[None].expand(size, -1, -1)
    inputs = torch.cat([prefix, visual.to(prefix.dtype), embed(texts.ids)], 1)
    head = prefix.shape[1] + count
    positions = torch.cat([torch.arange(head)[None].expand(size, -1), texts.positions], 1)
    hidden = llm.model(inputs_embeds=inputs, attention_mask=texts.mask, position_ids=positions, use_cache=False)[0][
        :, head - 1 : -1
    ]
    wanted = texts.labels != IGNORE
    logits = llm.lm_head(hidden[wanted]).float()
    target = texts.labels[wanted]
    return torch.nn.functional.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean().item()


def sample_batch(
    rng: random.Random, size: int, per_picture: int, max_shapes: int
) -> tuple[list[Scene], list[list[Question]]]:
    scenes = [sample_scene(rng, max_shapes) for _ in range(size)]
    scenes = [s if s.things else sample_scene(rng, max_shapes) for s in scenes]
    return scenes, [sample_questions(s, rng, per_picture) if s.things else [] for s in scenes]


def codes_of(scenes: list[Scene]) -> torch.Tensor:
    """float32 [B, 576, COORDINATES] of the scenes' patches."""
    return torch.from_numpy(np.stack([encode_labels(patch_labels(s)).reshape(GRID * GRID, -1) for s in scenes]))


def pixels_of(scenes: list[Scene]) -> torch.Tensor:
    return torch.stack([preprocess(render(s)) for s in scenes])
