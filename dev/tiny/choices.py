"""Training questions with lettered options and with other requests, as some benchmarks put them."""

from __future__ import annotations

import random
from dataclasses import replace

from dev.tiny.mini_common import OPEN, with_options
from dev.tiny.questions import Mix, Question, sample_questions
from llava.eval.engine.choices import LETTER_REQUEST, LETTERS
from llava.eval.engine.choices import ask as lettered
from llava.eval.probe.drawing import Scene

VIZWIZ_REQUEST = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)
VIZWIZ_SHARE = 0.15  # of the open questions


def ask_step(rng: random.Random, scenes: list[Scene], number: int, mix: Mix, choices: float) -> list[list[Question]]:
    """One step's questions, as many for every scene.

    choices: the share of the steps that ask with options, about half as many questions each (they are long); with it,
    some of the other questions come with another request.
    """
    if choices and rng.random() < choices:
        return [sample_choices(scene, rng, max(1, number // 2)) for scene in scenes]
    open_questions = [sample_questions(scene, rng, number, mix) for scene in scenes]
    return [[vary_request(q, rng) for q in row] for row in open_questions] if choices else open_questions


def sample_choices(scene: Scene, rng: random.Random, number: int) -> list[Question]:
    """`number` questions with options about one scene, answered by the option's letter."""
    questions: list[Question] = []
    while len(questions) < number:
        open_question = OPEN[rng.choice(list(OPEN))](scene, rng)
        if open_question is None:
            continue
        choice = with_options(open_question, rng)
        text, letter = lettered(choice.text, choice.options), LETTERS[choice.answer]
        questions.append(Question("choice", text, letter, open_question.about, LETTER_REQUEST))
    return questions


def vary_request(question: Question, rng: random.Random) -> Question:
    return replace(question, request=VIZWIZ_REQUEST) if rng.random() < VIZWIZ_SHARE else question
