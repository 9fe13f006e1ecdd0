"""Strategies that act inside the LLM, and what the engine gives them, against slow references written out here."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, PATCHES, prompt, tiny_llava
from test_methods import (
    AFTER,
    BEFORE,
    CLOSE,
    LAYERS,
    best,
    check_batch,
    check_reference,
    embed,
    images_of,
    reference,
    registered,
    staying,
    turned,
)
from torch.nn.functional import pad

import dart
from dart.families import Family
from dart.strategies import Reduction, Strategy


def config(name, keep=9, **settings):
    return dart.DartConfig(keep=keep, strategy=name, **settings)


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


# The signals of single heads, of the rotation alone, and of the layer before a stage that follows a stage.


def head_rows(block, hidden, angles, seen, query):
    """[H, S]: one query's softmax row in every head, for hidden states [S, D] that go into `block`."""
    normed, attention = block.input_layernorm(hidden), block.self_attn
    queries = turned(attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim)), angles)
    keys = turned(attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)), angles)
    blocked = ~seen | (torch.arange(len(hidden)) > query)
    rows = []
    for head in range(queries.shape[1]):
        scores = keys[:, head * keys.shape[1] // queries.shape[1]] @ queries[query, head] / attention.head_dim**0.5
        rows.append(scores.masked_fill(blocked, -math.inf).softmax(-1))
    return torch.stack(rows)


def rotation_row(angles, width, seen, query):
    """[S]: the softmax row of a query of ones and keys of ones; (1, 1) turned by an angle has the same length."""
    cos, sin = (part[0] for part in angles)
    scores = torch.stack([(cos[query] * cos[k] + sin[query] * sin[k]).sum() for k in range(len(cos))]) / width**0.5
    blocked = ~seen | (torch.arange(len(cos)) > query)
    return scores.masked_fill(blocked, -math.inf).softmax(-1)


class HeadSpy(Strategy):
    """Keeps every second token at three layers that follow each other and remembers what it saw."""

    needs = frozenset({"attention", "raw", "previous"})
    seen: list[tuple[torch.Tensor, ...]] = []

    def stages(self, config, layers):
        return tuple(dart.strategies.Stage(k, 0.5**k) for k in (1, 2, 3))

    def reduce(self, tokens):
        signals, queries = tokens.signals, tokens.text[-2:]
        rows = signals.attention_heads(queries), signals.attention_rows(queries), signals.rotation_rows(queries)
        self.seen.append((*rows, signals.previous, signals.raw))
        return Reduction(tokens.visual[::2][: tokens.keep])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_signals_of_stages_that_follow_each_other(attention):
    model, (ids, pixels), states = tiny_llava(attention), prompt(BEFORE, AFTER), {}
    HeadSpy.seen.clear()

    def choose(layer, hidden, angles, seen):
        states[layer] = hidden, angles, seen
        left = [places[seen[places]] for places in images_of(ids[0])]
        return staying(ids[0], [places[::2] if layer else places for places in left]), None

    reference(model, embed(model, ids, pixels), dict.fromkeys(range(4)), choose)
    with registered("head-spy", HeadSpy), dart.prune(model, config("head-spy", 0.125)):
        model(input_ids=ids, pixel_values=pixels)
    assert len(HeadSpy.seen) == 3
    last = ids.shape[1] - 1
    for layer, (heads, mean, rotation, previous, raw) in enumerate(HeadSpy.seen, 1):
        hidden, angles, before = states[layer - 1]
        # What layer - 1 saw: what it left when it was a stage itself.
        left = states[layer][2].nonzero().flatten()
        block = model.model.language_model.layers[layer - 1]
        for row, query in enumerate((last - 1, last)):
            wanted = head_rows(block, hidden, angles, states[layer][2], query)[:, left]
            torch.testing.assert_close(heads[:, row], wanted, **CLOSE)
            wanted = rotation_row(angles, block.self_attn.head_dim, states[layer][2], query)[left]
            torch.testing.assert_close(rotation[row], wanted, **CLOSE)
        torch.testing.assert_close(mean, heads.mean(0))
        torch.testing.assert_close(previous, hidden[left], **CLOSE)
        torch.testing.assert_close(raw, states[layer][0][left], **CLOSE)


# What each method should keep: (model, ids [1, S], pixels, count per image) -> stages, as in test_methods.py.


def at_stages(model, ids, pixels, layers, select):
    """{layer: (rows, change)} of a method that drops tokens at `layers`; select(layer, places, states, seen, angles)
    makes (positions that stay of one image's `places`, {centre: positions of its mean} or {}); states: {layer: what
    goes into it}."""
    states = {}

    def choose(layer, hidden, angles, seen):
        states[layer] = hidden
        if layer not in layers:
            return seen.nonzero().flatten(), None
        parts, means = [], {}
        for number, places in enumerate(images_of(ids[0])):
            part, sums = select(number, layer, places[seen[places]], states, seen, angles)
            parts.append(part)
            means |= sums

        def change(before):
            after = before.clone()
            for centre, members in means.items():
                after[centre] = before[members].mean(0)
            return after

        states[layer] = change(hidden)
        return staying(ids[0], parts), change

    found = {}
    wrapped = choose

    def remember(layer, *given):
        found[layer] = wrapped(layer, *given)
        return found[layer]

    reference(model, embed(model, ids, pixels), dict.fromkeys(range(LAYERS)), remember)
    return {layer: found[layer] for layer in layers}


def text_after(ids):
    return torch.arange(int(images_of(ids[0])[-1][-1]) + 1, ids.shape[1])


def sparsevlm(model, ids, pixels, keep, version=2, share=14 / 32):
    counts = {layer: min(PATCHES, int(keep / 60 * count + 1e-9)) for layer, count in enumerate((238, 108, 60), 1)}
    embeds, question, raters = embed(model, ids, pixels)[0].double(), text_after(ids), []
    for places in images_of(ids[0]):
        rows = [np.exp([float(embeds[v] @ embeds[t]) for t in question]) for v in places]
        means = np.mean([row / row.sum() for row in rows], 0)
        raters.append(question[torch.from_numpy(means > means.mean())].tolist())

    def select(number, layer, places, states, seen, angles):
        block, scores = model.model.language_model.layers[layer - 1], 0
        if version == 1:
            for rater in raters[number]:
                scores = scores + head_rows(block, states[layer - 1], angles, seen, rater)[:, places].mean(0)
            return recycled(states[layer], places, scores, counts[layer])
        for rater in raters[number]:
            own = rotation_row(angles, block.self_attn.head_dim, seen, rater)[places]
            scores = scores + head_rows(block, states[layer - 1], angles, seen, rater)[:, places] / own
        heads = best(scores.sum(1), round(len(scores) * share))
        return places[best(scores[heads].sum(0), counts[layer])], {}

    return at_stages(model, ids, pixels, counts, select)


def recycled(hidden, places, scores, keep):
    """The strongest, and means of the next 30 % by density peaks: `keep` in all; ({positions}, {centre: members})."""
    if keep >= len(places):
        return places, {}
    for strong in range(keep, -1, -1):
        size = int(0.3 * (len(places) - strong)) + 1
        clusters = int(size / 10) + 1
        if strong + clusters == keep:
            break
    order = sorted(range(len(places)), key=lambda i: (-float(scores[i]), i))
    kept, again = order[:strong], sorted(order[strong : strong + size])
    x = hidden[places[again]].double().numpy()
    far = np.array([[np.sqrt(((a - b) ** 2).sum() / len(a)) for b in x] for a in x])
    density = [math.exp(-np.mean(np.sort(row)[:clusters] ** 2)) for row in far]
    delta = []
    for i in range(size):
        denser = [far[i, j] for j in range(size) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        delta.append(min(denser, default=far.max()))
    centres = best(np.array(delta) * np.array(density), clusters).tolist()
    members = {centre: [centre] for centre in centres}
    for i in set(range(size)) - set(centres):
        members[min(centres, key=lambda c: far[i, c])].append(i)
    means = {int(places[again[c]]): places[torch.tensor([again[i] for i in own])] for c, own in members.items()}
    return torch.tensor(sorted([*places[kept].tolist(), *means])), means


def v2drop(model, ids, pixels, keep, counts=None):
    counts = counts or {1: min(2 * keep, PATCHES), 2: keep}

    def select(number, layer, places, states, seen, angles):
        changes = [float((states[layer][p] - states[layer - 1][p]).double().norm()) for p in places]
        return places[best(changes, counts[layer])], {}

    return at_stages(model, ids, pixels, counts, select)


def mob_of(hidden, places, question, keep, share=None, near=None):
    """Positions by loops: P named by the question, then the farthest from what was chosen."""
    unit = {int(p): hidden[p].double() / hidden[p].double().norm() for p in [*places, *question]}
    size = round(min(keep / 2, 16 + keep / 4) if share is None else keep * share)
    near = near or max(1, round(size / 8))
    named = {}
    for word in question.tolist():
        similar = {int(p): float(unit[int(p)] @ unit[word]) for p in places}
        for p in sorted(similar, key=lambda p: (-similar[p], p))[:near]:
            named[p] = max(named.get(p, -2), similar[p])
    chosen = sorted(named, key=lambda p: (-named[p], p))[:size]
    left = [p for p in places.tolist() if p not in chosen]
    if not chosen:
        chosen = [max(left, key=lambda p: min(1 - float(unit[p] @ unit[q]) for q in left if q != p))]
    while len(chosen) < keep:
        left = [p for p in places.tolist() if p not in chosen]
        chosen.append(max(left, key=lambda p: min(1 - float(unit[p] @ unit[c]) for c in chosen)))
    return torch.tensor(sorted(chosen))


def mob(model, ids, pixels, keep, layer=2, **settings):
    out = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True)
    hidden, question = out.hidden_states[layer][0], text_after(ids)
    parts = [mob_of(hidden, places, question, keep, **settings) for places in images_of(ids[0])]
    return {layer: (staying(ids[0], parts), None)}


METHODS = {
    "sparsevlm": (sparsevlm, {}),
    "sparsevlm-one-head": (partial(sparsevlm, share=0.25), {"strategy": "sparsevlm", "options": {"heads": 0.25}}),
    "sparsevlm-1": (partial(sparsevlm, version=1), {"strategy": "sparsevlm", "options": {"version": 1}}),
    "v2drop": (v2drop, {}),
    "mob": (mob, {}),
    "mob-prior": (
        partial(mob, share=0.75, near=1),
        {"strategy": "mob", "options": {"prompt_share": 0.75, "neighbours": 1}},
    ),
    "mob-first": (partial(mob, layer=0), {"strategy": "mob", "layer": 0}),
}


def method(name, keep):
    return config(**{"name": METHODS[name][1].get("strategy", name), "keep": keep, **without(METHODS[name][1])})


def without(settings):
    return {key: value for key, value in settings.items() if key != "strategy"}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_prefill_and_decoding_follow_the_reference(model, name, images):
    ids, pixels = prompt(BEFORE, AFTER, images)
    stages = METHODS[name][0](model, ids, pixels, 9)
    check_reference(model, ids, pixels, method(name, 9 * images), stages)


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_padded_batch_equals_its_rows_alone(model, name):
    check_batch(model, method(name, 0.25))
