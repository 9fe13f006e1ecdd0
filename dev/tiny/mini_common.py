"""What the small mini benchmarks share: small images, questions with options, one command line."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dev.tiny import questions as ask
from dev.tiny.mini import scenes_with
from dev.tiny.questions import COUNT_WORDS, Question
from llava.eval.probe.drawing import COLORS, SHAPES, SIGN, Scene, render

LONGEST_SIDE = 280  # pixels; these sets are many, so their images are small
QUALITY = 80
PNG_COLORS = 32
OPTIONS = 4
ANSWERS_PER_QUESTION = 10

Asker = Callable[[Scene, random.Random], Question | None]


def small_picture(scene: Scene) -> Image.Image:
    image = render(scene)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def encoded(scene: Scene, kind: str = "JPEG") -> bytes:
    """The small image as a file's bytes."""
    out, image = io.BytesIO(), small_picture(scene)
    if kind == "PNG":
        image = image.quantize(PNG_COLORS)
    image.save(out, kind, quality=QUALITY, optimize=True)
    return out.getvalue()


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def scenes(rng: random.Random, askers: list[Asker]) -> Iterator[tuple[Scene, list[Question]]]:
    """Scenes without the textures that make files large, with one question of each kind."""
    return (pair for pair in scenes_with(rng, askers) if pair[0].texture in ("plain", "stripes"))


@dataclass(frozen=True)
class Choice:
    """A question with options; `answer` is an index."""

    category: str
    text: str
    options: tuple[str, ...]
    answer: int


POOLS = {"color": tuple(COLORS), "shape": SHAPES, "count": COUNT_WORDS[1:], "side": ("left", "right")}
# An open question of each kind that has options.
OPEN: dict[str, Asker] = {
    "color": ask.ask_color,
    "shape": ask.ask_shape,
    "number": ask.ask_number,
    "side": ask.ask_side,
    "count": lambda scene, rng: (
        Question("count", "How many shapes are there in the image?", COUNT_WORDS[len(scene.shapes)])
        if scene.shapes
        else None
    ),
}


def with_options(question: Question, rng: random.Random) -> Choice:
    """The question with its answer among at most four options, in random order."""
    if question.category == "number":
        pool = tuple(str(n) for n in range(10, 100))
    else:
        pool = POOLS[question.category]
    others = [option for option in pool if option != question.answer]
    options = [question.answer, *rng.sample(others, min(OPTIONS - 1, len(others)))]
    rng.shuffle(options)
    return Choice(question.category, question.text, tuple(options), options.index(question.answer))


def ten_answers(answer: str, other: str) -> list[str]:
    """Ten people's answers, one of whom disagrees."""
    return [answer] * (ANSWERS_PER_QUESTION - 1) + [other]


def another(question: Question, rng: random.Random) -> str:
    """A wrong answer of the same kind."""
    if question.answer in ("Yes", "No"):
        return "no" if question.answer == "Yes" else "yes"
    if question.answer.isdigit():
        return str(rng.choice([n for n in range(10, 100) if str(n) != question.answer]))
    pool = next((p for p in POOLS.values() if question.answer in p), (SIGN,))
    return rng.choice([word for word in pool if word != question.answer])
