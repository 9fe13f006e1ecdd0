"""Strategies that act inside the LLM, and what the engine gives them, against slow references written out here."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, PATCHES, prompt, tiny_llava
from torch.nn.functional import pad

import dart
from dart.families import Family
from dart.strategies import Reduction, Strategy, register
from dart.strategies.base import REGISTRY

BEFORE, AFTER = 5, 7


@contextmanager
def registered(name, kind):
    register(name)(kind)
    try:
        yield
    finally:
        del REGISTRY[name]


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


# The question.


def configured(ends, **named):
    """As much of a model as says which tokens are special."""
    text = SimpleNamespace(bos_token_id=1, eos_token_id=ends[0])
    config = SimpleNamespace(image_token_id=90, get_text_config=lambda decoder: text, **named)
    return SimpleNamespace(config=config, generation_config=SimpleNamespace(eos_token_id=ends, pad_token_id=0))


@pytest.mark.parametrize(
    "ends, ids, asked",
    [
        # One end token: it ends answers, and the tail is text like any other.
        ([2], [11, 12, 13], [0, 1, 2]),
        ([2], [11, 12, 2, 13, 14], [0, 1, 3, 4]),
        # Several: turns end with one; what follows the last turn calls for the answer.
        ([2, 0], [91, 11, 12, 2, 13, 14], [1, 2]),
        ([2, 0], [91, 11, 2, 13, 12, 2, 14, 15, 2, 16], [1, 3, 4, 6, 7]),
        ([2, 0], [11, 12, 13], [0, 1, 2]),
        # The question came before the image: the tail is all there is.
        ([2, 0], [91, 2, 13, 14], [0, 1, 2, 3]),
        ([2], [], []),
    ],
)
def test_the_question_is_the_text_without_special_tokens_and_without_the_templates_tail(ends, ids, asked):
    got = Family().question(configured(ends, vision_end_token_id=91), np.array(ids, dtype=np.int64))
    assert got.nonzero()[0].tolist() == asked


class QuestionSpy(Strategy):
    """Keeps the first tokens at two layers and remembers the question."""

    needs = frozenset({"question"})
    seen: list[list[int]] = []

    def stages(self, config, layers):
        return dart.strategies.Stage(1, 0.5), dart.strategies.Stage(2, 0.25)

    def reduce(self, tokens):
        self.seen.append(tokens.signals.question.tolist())
        return Reduction(tokens.visual[: tokens.keep])


@torch.no_grad()
def test_questions_of_a_padded_batch_at_every_stage_and_in_generate(model):
    """Ids 95 and 96 end turns here. The second row is longer by 10 tokens; 18 and then 9 tokens leave each image."""
    one, two = prompt(3, 6, seed=1), prompt(8, 11, seed=2)
    one[0][0, -2], two[0][0, -3] = 95, 96
    two[0][0, 8 + PATCHES] = 1  # a special token
    ids = torch.cat([pad(one[0], (two[0].shape[1] - one[0].shape[1], 0)), two[0]])
    given = {"input_ids": ids, "pixel_values": torch.cat([one[1], two[1]]), "attention_mask": (ids != 0).long()}
    QuestionSpy.seen.clear()
    model.generation_config.eos_token_id = [95, 96]
    try:
        with registered("question-spy", QuestionSpy), dart.prune(model, config("question-spy", 0.25)):
            model(**given)
            model.generate(**given, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE_TOKEN])
    finally:
        model.generation_config.eos_token_id = None
    end = ids.shape[1]
    first, second = list(range(end - 6, end - 2)), list(range(end - 10, end - 3))
    half = PATCHES // 2
    wanted = [first, second, [p - half for p in first], [p - half for p in second]]
    assert QuestionSpy.seen == wanted * 2


def config(name, keep=9, **settings):
    return dart.DartConfig(keep=keep, strategy=name, **settings)
