"""Questions about one of two images, and short videos of scenes whose things drift."""

from __future__ import annotations

import random
from dataclasses import replace

from dev.tiny.questions import Question, ask_color, ask_number, ask_presence, ask_shape
from llava.eval.probe.drawing import Scene, Thing, view_window

ASKERS = {"color": ask_color, "shape": ask_shape, "number": ask_number, "presence": ask_presence}
WEIGHTS = (1.0, 1.0, 1.5, 1.5)
PICTURES = ("first image", "second image")
VIDEO = "video"
FRAMES = 4
DRIFT = 0.012  # of the view's side a frame, at most: a thing stays on its patches for two frames


def about(question: Question, where: str) -> Question:
    """The question with the place it asks about: "What color is the circle in the first image?"."""
    plain = question.text.removesuffix("?").removesuffix(" in the image")
    return replace(question, text=f"{plain} in the {where}?")


def sample_question(scene: Scene, where: str, rng: random.Random) -> Question:
    """A question about one scene, its place named."""
    while True:
        question = rng.choices(list(ASKERS.values()), WEIGHTS)[0](scene, rng)
        if question is not None:
            return about(question, where)


def sample_of_two(pair: tuple[Scene, Scene], rng: random.Random) -> Question:
    """A question about one of two images; `about` counts the things of the first, then those of the second."""
    which = rng.randrange(2)
    question = sample_question(pair[which], PICTURES[which], rng)
    shift = len(pair[0].things) if which else 0
    return replace(question, about=question.about and tuple(k + shift for k in question.about))


def drift(scene: Scene, rng: random.Random, frames: int = FRAMES) -> list[Scene]:
    """The frames of a video: every thing moves at its own pace and stays in the image."""
    x0, y0, x1, y1 = view_window(scene.size)
    paces = [(rng.uniform(-DRIFT, DRIFT), rng.uniform(-DRIFT, DRIFT)) for _ in scene.things]

    def moved(thing: Thing, pace: tuple[float, float], k: int) -> Thing:
        x = min(x1 - thing.rx, max(x0 + thing.rx, thing.x + k * pace[0]))
        return replace(thing, x=x, y=min(y1 - thing.ry, max(y0 + thing.ry, thing.y + k * pace[1])))

    pairs = list(zip(scene.things, paces, strict=True))
    return [replace(scene, things=[moved(t, pace, k) for t, pace in pairs]) for k in range(frames)]
