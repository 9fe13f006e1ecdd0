"""Training batches: images, windows of images, their codes, and the tokens of questions about them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from PIL import Image

from dev.tiny.codes import encode_labels
from dev.tiny.model import CLIP_MEAN, CLIP_STD, IMAGE_PX, PATCH_PX
from dev.tiny.questions import Question, prompt_of
from dev.tiny.tokenizer import SYSTEM
from dev.tiny.world import patch_labels, sample_scene
from llava.eval.probe.drawing import GRID, SIGN, Scene, render

IGNORE = -100
TURN_MULTIPLE = 8  # questions are padded to a multiple of this: odd sizes make slow matmuls
MEAN_COLOR = tuple(int(255 * m) for m in CLIP_MEAN)
SIGN_WEIGHT = 3.0  # windows look at signs more often than at shapes: ten digits are harder than six kinds
ELSEWHERE_SHARE = 0.1  # of the windows look at no object in particular
WINDOW_JITTER = 2
TRAINING_LONE_SHARE = 0.25  # more than in the benchmarks: easy-VQA's questions are about one shape


@dataclass
class Texts:
    """A batch's questions, one per row and as many for every image, padded on the right.

    prefix: int64 [P], what precedes every image; ids, labels: int64 [B * Q, T]; questions: each row's; end: the
    token that ends an answer.
    """

    prefix: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    questions: list[Question]
    end: int

    def to(self, device: str) -> Texts:
        moved = (each.to(device) for each in (self.prefix, self.ids, self.labels))
        return Texts(*moved, self.questions, self.end)


def to_square(image: Image.Image) -> np.ndarray:
    """Pad to a square with CLIP's mean colour and resize: uint8 [336, 336, 3]."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), MEAN_COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC))


def normalise(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] as CLIP's processor gives it."""
    pixels = (pictures.astype(np.float32) / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    return torch.from_numpy(np.moveaxis(pixels, -1, -3))


class Packer:
    """Tokenizes questions as `vicuna_v1` prompts."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor):
        self.tokenizer = tokenizer
        self.prefix = [tokenizer.bos_id(), *tokenizer.encode(SYSTEM + " USER: ")]
        self.filler, self.end = tokenizer.bos_id(), tokenizer.eos_id()
        self._cache: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text)
        return self._cache[text]

    def turn(self, question: Question, brief: bool = False) -> tuple[list[int], list[int]]:
        """Token ids and labels of one question with its answer; only the answer is learned.

        `brief` leaves the request for a short answer out: fewer tokens while the model learns to look.
        """
        prompt = question.text if brief else prompt_of(question.text, question.request)
        asked = self._encode(f"\n{prompt} ASSISTANT:")
        answer = [*self._encode(question.answer), self.end]
        return asked + answer, [IGNORE] * len(asked) + answer

    def pack(self, questions: list[list[Question]], brief: bool = False) -> Texts:
        turns = [self.turn(q, brief) for row in questions for q in row]
        width = -(-max(len(ids) for ids, _ in turns) // TURN_MULTIPLE) * TURN_MULTIPLE
        ids = torch.full((len(turns), width), self.filler)
        labels = torch.full((len(turns), width), IGNORE)
        for row, (tokens, targets) in enumerate(turns):
            ids[row, : len(tokens)], labels[row, : len(tokens)] = torch.tensor(tokens), torch.tensor(targets)
        return Texts(torch.tensor(self.prefix), ids, labels, [q for row in questions for q in row], self.end)


def sample_scenes(rng: random.Random, size: int, max_shapes: int) -> list[Scene]:
    scenes: list[Scene] = []
    while len(scenes) < size:
        scene = sample_scene(rng, max_shapes, TRAINING_LONE_SHARE)
        if scene.things:
            scenes.append(scene)
    return scenes


def codes_of(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """The scenes' patches: codes float32 [B, 576, COORDINATES], the thing each belongs to (-1: none) int64 [B, 576]."""
    labels = [patch_labels(s) for s in scenes]
    codes = np.stack([encode_labels(each).reshape(GRID * GRID, -1) for each in labels])
    return torch.from_numpy(codes), torch.from_numpy(np.stack([each["thing"].reshape(-1) for each in labels]))


def pixels_of(scenes: list[Scene]) -> torch.Tensor:
    """float32 [B, 3, 336, 336]."""
    return normalise(np.stack([to_square(render(s)) for s in scenes]))


class SceneBank:
    """Rendered scenes to cut windows from: a window costs a fraction of an image, in drawing and in the tower."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._items: list[tuple[Scene, np.ndarray, np.ndarray]] = []

    def refresh(self, rng: random.Random, growing: int, replacing: int, max_shapes: int) -> None:
        """Draw `growing` new scenes until the bank is full, then replace `replacing` of them."""
        full = len(self._items) >= self.capacity
        for scene in sample_scenes(rng, replacing if full else growing, max_shapes):
            item = (scene, to_square(render(scene)), encode_labels(patch_labels(scene)))
            if full:
                self._items[rng.randrange(self.capacity)] = item
            else:
                self._items.append(item)

    def windows(self, rng: random.Random, size: int, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`size` windows of side x side patches: (pixels float32 [size, 3, side * 14, side * 14],
        patch indices int64 [size, side²] in the whole image, codes float32 [size, side², COORDINATES])."""
        grid = np.arange(GRID * GRID).reshape(GRID, GRID)
        pictures, indices, codes = [], [], []
        for _ in range(size):
            scene, picture, code = rng.choice(self._items)
            row, column = _window_corner(scene, rng, side)
            rows, columns = slice(row, row + side), slice(column, column + side)
            pictures.append(
                picture[row * PATCH_PX : (row + side) * PATCH_PX, column * PATCH_PX : (column + side) * PATCH_PX]
            )
            indices.append(grid[rows, columns].ravel())
            codes.append(code[rows, columns].reshape(side * side, -1))
        return (normalise(np.stack(pictures)), torch.from_numpy(np.stack(indices)), torch.from_numpy(np.stack(codes)))


def _window_corner(scene: Scene, rng: random.Random, side: int) -> tuple[int, int]:
    """(row, column) of the first patch of a window that mostly looks at one of the scene's objects."""
    last = GRID - side
    if rng.random() < ELSEWHERE_SHARE:
        return rng.randint(0, last), rng.randint(0, last)
    weights = [SIGN_WEIGHT if t.kind == SIGN else 1.0 for t in scene.things]
    thing = rng.choices(scene.things, weights)[0]
    corner = [int(c * GRID) - side // 2 + rng.randint(-WINDOW_JITTER, WINDOW_JITTER) for c in (thing.y, thing.x)]
    row, column = (min(last, max(0, c)) for c in corner)
    return row, column
