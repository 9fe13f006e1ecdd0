"""Strategies that act inside the LLM, and what the engine gives them, against slow references written out here."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, PATCHES, prompt, tiny_llava
from qwen_golden import VIDEO
from qwen_golden import batch as qwen_batch
from qwen_golden import loaded as qwen
from qwen_golden import prompt as qwen_prompt
from test_methods import (
    AFTER,
    BEFORE,
    CLOSE,
    LAYERS,
    best,
    check_batch,
    check_kernels,
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
import dart.kernels
from dart.engine.budgets import stage_budget
from dart.engine.selection import merge_states
from dart.engine.signals import Signals
from dart.families import Family
from dart.strategies import Merge, Reduction, Strategy
from dart.strategies.base import GroupPlan, Tokens


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


class MergeSpy(HeadSpy):
    """At the first of two stages adds the first dropped token to the first kept one."""

    needs = frozenset({"raw", "previous"})

    def reduce(self, tokens):
        self.seen.append((tokens.signals.previous, tokens.signals.raw))
        if len(tokens.visual) < PATCHES:
            return Reduction(tokens.visual[: tokens.keep])
        one = torch.ones(1)
        merge = Merge(tokens.visual[-1:], torch.zeros(1, dtype=torch.long), one, torch.ones(tokens.keep))
        return Reduction(tokens.visual[: tokens.keep], merge)


@torch.no_grad()
def test_the_states_before_are_those_that_a_stage_has_merged(model):
    ids, pixels = prompt(BEFORE, AFTER)
    MergeSpy.seen.clear()
    with registered("merge-spy", MergeSpy), dart.prune(model, config("merge-spy", 0.125)):
        model(input_ids=ids, pixel_values=pixels)
    first, second = MergeSpy.seen[0][1], MergeSpy.seen[1][0]
    assert len(second) == BEFORE + PATCHES // 2 + AFTER
    torch.testing.assert_close(second[BEFORE], first[BEFORE] + first[BEFORE + PATCHES - 1])
    torch.testing.assert_close(second[BEFORE + 1 :][: PATCHES // 2 - 1], first[BEFORE + 1 :][: PATCHES // 2 - 1])


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
    away, matrix = {p: 3.0 for p in places.tolist()}, torch.stack([unit[p] for p in places.tolist()])
    for number in range(keep):
        if number == len(chosen):
            chosen.append(max((p for p in places.tolist() if p not in chosen), key=lambda p: away[p]))
        far = (1 - matrix @ unit[chosen[number]]).tolist()
        away = {p: min(away[p], each) for p, each in zip(away, far, strict=True)}
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


@pytest.mark.parametrize("name", ["sparsevlm", "sparsevlm-1", "v2drop", "mob"])
@torch.no_grad()
def test_qwen_batches_and_videos(name):
    """Ragged rows, positions in three dimensions: the batch gives what its rows give alone."""
    model = qwen("qwen2_vl")
    rows = [
        qwen_prompt(3, ("image", 1, 8, 12), 4, ("video", 2, 4, 6), 5),
        qwen_prompt(6, ("image", 1, 6, 4), 5, seed=1),
    ]
    with dart.prune(model, method(name, 0.5)) as handle:
        alone = [(model(**row).logits[0, -1], handle.last.visual_after[0]) for row in rows]
        logits = model(**qwen_batch(*rows)).logits[:, -1]
    assert handle.last.visual_after == [count for _, count in alone] == [18, 3]
    torch.testing.assert_close(logits, torch.stack([each for each, _ in alone]), **CLOSE)


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_budgets_of_nothing_of_all_and_of_one_less_with_text_after_the_image_and_without(model, name):
    for after in (AFTER, 0):
        ids, pixels = prompt(BEFORE, after)
        for keep in (0, 1, 2, 7, PATCHES - 1, PATCHES):
            with dart.prune(model, method(name, keep)) as handle:
                logits = model(input_ids=ids, pixel_values=pixels).logits
            assert handle.last.visual_after == [keep] and logits.isfinite().all()
            assert logits.shape[1] == BEFORE + keep + after


@pytest.mark.parametrize("name", ["sparsevlm", "sparsevlm-1", "v2drop", "mob"])
@torch.no_grad()
def test_means_over_the_layers(model, name):
    ids, pixels = prompt(BEFORE, AFTER, 2)
    settings = dataclasses.replace(method(name, 50), budget_kind="mean-over-layers")
    with dart.prune(model, settings) as handle:
        model(input_ids=ids, pixel_values=pixels)
    assert 50 - LAYERS < handle.last.mean_visual_tokens[0] <= 50
    with pytest.raises(ValueError, match=f"'pre-llm'.*{name.removesuffix('-1')}"):
        dart.prune(model, dataclasses.replace(method(name, 50), budget_kind="pre-llm"))


@pytest.mark.parametrize("name", ["sparsevlm", "mob", "v2drop"])
def test_any_attention_kernel_gives_the_same_tokens(name):
    check_kernels(method(name, 9))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("sparsevlm", {"version": 3}, "version must be 1 or 2"),
        ("sparsevlm", {"heads": 0}, "heads a share"),
        ("sparsevlm", {"fractions": (0.5,)}, "places and fractions of strategy 'sparsevlm'"),
        ("v2drop", {"fractions": (0.1, 0.2)}, "places and fractions of strategy 'v2drop'"),
        ("mob", {"prompt_share": 1.5}, "'mob': prompt_share"),
        ("mob", {"neighbours": 0}, "'mob': prompt_share"),
        ("dart", {"pivots": "norm"}, "pivots of strategy 'dart' must be one of k-norm, k-norm-min"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        dart.prune(model, config(name, options=options))


# What each method promises.


def test_sparsevlms_official_counts():
    """After layers 2, 6 and 15 of 32: 66, 34 and 20 tokens of 576, and the same of the default's shape."""
    for options, keep, counts in (
        ({"fractions": (66 / 576, 34 / 576, 20 / 576)}, 20, [66, 34, 20]),
        ({}, 60, [238, 108, 60]),
    ):
        settings = config("sparsevlm", keep, options=options)
        stages = dart.strategies.get("sparsevlm").stages(settings, 32)
        assert [stage.layer for stage in stages] == [3, 7, 16]
        assert [int(stage_budget(settings, stages, k, 576, keep, 32)) for k in range(3)] == counts


def test_v2drops_official_counts():
    options = {"places": (3 / 32, 17 / 32, 22 / 32), "fractions": (1 / 2, 1 / 4, 1 / 576)}
    settings = config("v2drop", 1, options=options)
    stages = dart.strategies.get("v2drop").stages(settings, 32)
    assert [stage.layer for stage in stages] == [3, 17, 22]
    assert [int(stage_budget(settings, stages, k, 576, 1, 32)) for k in range(3)] == [288, 144, 1]


@pytest.mark.parametrize("keep, named, near", [(64, 32, 4), (128, 48, 6), (192, 64, 8)])
def test_mobs_published_numbers(keep, named, near):
    """One word for each direction: it names its `near` nearest, of which the best `named` stay."""
    generator = torch.Generator().manual_seed(keep)
    hidden = torch.randn(596, 16, generator=generator)
    mask = torch.arange(596) < 576
    kept = dart.select(hidden, hidden[None], mask, config("mob", keep))
    wanted = mob_of(hidden, torch.arange(576), torch.arange(576, 596), keep, share=named / keep, near=near)
    assert kept.tolist() == wanted.tolist()


def test_mob_keeps_what_the_question_names_and_spreads_over_the_rest():
    """Two clusters of equal tokens; the question points at the second."""
    east, north = torch.eye(2)
    hidden = torch.stack([east] * 8 + [north] * 8 + [north * 3])
    mask = torch.arange(17) < 16
    assert dart.select(hidden, hidden[None], mask, config("mob", 2)).tolist() == [0, 8]
    asked = config("mob", 3, options={"prompt_share": 1, "neighbours": 3})
    assert dart.select(hidden, hidden[None], mask, asked).tolist() == [8, 9, 10]
    silent = config("mob", 2)  # no question: DivPrune
    assert dart.select(hidden[:16], hidden[None, :16], mask[:16], silent).tolist() == [0, 8]


def test_ties_go_to_the_lower_position():
    hidden = torch.ones(20, 4)
    mask = torch.arange(20) < 16
    assert dart.select(hidden, hidden[None], mask, config("mob", 5)).tolist() == [0, 1, 2, 3, 4]
    grid = torch.tensor([[frame, 0, column, 0] for frame in range(4) for column in range(4)])
    assert dart.strategies.get("evs").reduce(video(hidden[:16], grid, 6)).keep.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("spread", [2, 0])
def test_sparsevlm_1_merges_what_it_drops_by_density_peaks(spread):
    """Five heaps and some tokens twice, of which the lower position is the denser one: 11 clusters of 109. Without a
    spread the heaps are five tokens, and centres are equal to each other."""
    generator = torch.Generator().manual_seed(4)
    heaps = 4 * torch.randn(5, 12, generator=generator)
    hidden = heaps[torch.arange(400) % 5] + spread * torch.randn(400, 12, generator=generator)
    hidden[200:300:2] = hidden[201:300:2]
    places, scores = torch.arange(400), torch.rand(400, generator=generator)
    scores[200:300:2] = scores[201:300:2]
    plan = GroupPlan(places.numpy(), np.zeros(0, dtype=np.int64), 50.0, 50)
    settings = config("sparsevlm", 50, options={"version": 1})
    tokens = Tokens(places, places[:0], Signals(hidden, None), settings, plan)
    reduction = dart.strategies.get("sparsevlm")._recycled(tokens, scores)
    kept, means = recycled(hidden, places, scores, 50)
    assert reduction.keep.tolist() == kept.tolist() and len(kept) == 50 and len(means) == 11
    got = merge_states(hidden[None], [[(reduction.keep, reduction.merge)]])[0]
    for place in kept.tolist():
        wanted = hidden[means[place]].mean(0) if place in means else hidden[place]
        torch.testing.assert_close(got[place], wanted)


@torch.no_grad()
def test_what_the_raters_are_is_decided_once(model):
    """At later stages they are the same words, whichever tokens are left."""
    ids, pixels = prompt(BEFORE, AFTER, 2)
    strategy, asked = type(dart.strategies.get("sparsevlm")), []

    class Watched(strategy):
        def _raters(self, tokens):
            raters = super()._raters(tokens)
            asked.append((len(tokens.visual), (raters - len(tokens.signals.raw)).tolist()))
            return raters

    with registered("watched", Watched), dart.prune(model, config("watched", 18)):
        model(input_ids=ids, pixel_values=pixels)
    assert [count for count, _ in asked] == [PATCHES, PATCHES, 35, 35, 16, 16]
    assert asked[0][1] == asked[2][1] == asked[4][1] and asked[1][1] == asked[3][1] == asked[5][1]
    assert all(0 < len(words) < AFTER for _, words in asked)


# Videos.


def video(states, grid, keep, scope="span"):
    plan = GroupPlan(np.arange(len(states)), np.zeros(0, dtype=np.int64), float(keep), keep)
    signals = Signals(states, None, {"grid": grid}, "evs")
    none = torch.zeros(0, dtype=torch.long)
    return Tokens(torch.arange(len(states)), none, signals, config("evs", keep, scope=scope), plan)


def changes_of(states, frames, high, wide):
    """float [frames * high * wide]: 1 - cosine to the token one frame earlier, by loops; 255 in the first frame."""
    size = high * wide
    for i in range(frames * size):
        one, other = states[i].double(), states[i - size].double()
        yield 255.0 if i < size else 1 - float(one @ other / one.norm() / other.norm())


@torch.no_grad()
def test_evs_follows_its_reference_on_videos_of_two_sizes():
    model = qwen("qwen2_vl")
    rows = [qwen_prompt(3, ("video", 3, 4, 6), 5), qwen_prompt(6, ("video", 2, 8, 4), 4, ("video", 4, 4, 4), 5, seed=1)]
    shapes = [[(3, 2, 3)], [(2, 4, 2), (4, 2, 2)]]
    got, wanted = [], []
    for row, videos in zip(rows, shapes, strict=True):
        layers = model.model.language_model.layers
        states = []
        hook = layers[0].register_forward_pre_hook(
            lambda module, args, kwargs, states=states: states.append((args or [kwargs["hidden_states"]])[0][0]),
            with_kwargs=True,
        )
        model(**row)
        hook.remove()
        places = (row["input_ids"][0] == VIDEO).nonzero().flatten().split([math.prod(each) for each in videos])
        kept = []
        for each, shape in zip(places, videos, strict=True):
            count = len(each) * 2 // 3
            kept += each[best(list(changes_of(states[0][each], *shape)), count)].tolist()
        wanted.append(kept)
        with dart.prune(model, config("evs", 2 / 3)) as handle:
            model(**row)
        got.append(handle.last.kept[0].tolist())
    assert got == wanted
    with dart.prune(model, config("evs", 2 / 3)) as handle:
        model(**qwen_batch(*rows))
    shift = rows[1]["input_ids"].shape[1] - rows[0]["input_ids"].shape[1]
    kept = [row[row >= 0].tolist() for row in handle.last.kept]
    assert kept == [[p + shift for p in wanted[0]], wanted[1]]


def test_evs_keeps_what_moves():
    """A still scene of 3 x 2 in four frames; one token of the third frame changes, and changes back."""
    states = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).repeat(4, 1)
    states[2 * 6 + 3] *= -1
    grid = torch.tensor([[frame, row, column, 0] for frame in range(4) for row in range(3) for column in range(2)])
    keep = dart.strategies.get("evs").reduce(video(states, grid, 8)).keep.tolist()
    assert keep == [0, 1, 2, 3, 4, 5, 2 * 6 + 3, 3 * 6 + 3]
    # Frames that are spans of their own, in one group.
    spans = torch.stack([grid[:, 0] * 0, grid[:, 1], grid[:, 2], grid[:, 0]], 1)
    assert dart.strategies.get("evs").reduce(video(states, spans, 8, "joint")).keep.tolist() == keep
    # An image of another size in front has nothing to do with them, and is a first frame.
    image = torch.tensor([[0, 0, column, 0] for column in range(4)])
    both, joined = torch.cat([image, spans + torch.tensor([0, 0, 0, 1])]), torch.cat([states[:4], states])
    keep = dart.strategies.get("evs").reduce(video(joined, both, 12, "joint")).keep.tolist()
    assert keep == [*range(10), 4 + 2 * 6 + 3, 4 + 3 * 6 + 3]


@torch.no_grad()
def test_evs_refuses_images_and_budgets_below_a_frame(model):
    ids, pixels = prompt(BEFORE, AFTER)
    with dart.prune(model, config("evs")), pytest.raises(ValueError, match="'evs' compares the frames of a video"):
        model(input_ids=ids, pixel_values=pixels)
    clip = qwen_prompt(3, ("video", 3, 4, 6), 5)
    refused = pytest.raises(ValueError, match="'evs' keeps the first frame of a video, 6 tokens here.*budget is 5")
    with dart.prune(qwen("qwen2_vl"), config("evs", 5)), refused:
        qwen("qwen2_vl")(**clip)


# DART's pivots by other rules.


@torch.no_grad()
def pivots_of(model, ids, pixels, rule, seed=0):
    """Positions of 4 image pivots and 4 text pivots, falling."""
    eager = tiny_llava("eager")
    out = eager(input_ids=ids, pixel_values=pixels, output_attentions=True, output_hidden_states=True)
    block, angles = model.model.language_model.layers[1], model.model.language_model.rotary_emb
    normed, size = block.input_layernorm(out.hidden_states[1][0]), ids.shape[1]
    visual, text = images_of(ids[0])[0], text_after(ids)
    if rule == "random":
        drawn = torch.rand(len(visual) + len(text), generator=torch.Generator().manual_seed(seed))
        scores = dict(zip([*visual.tolist(), *text.tolist()], drawn.tolist(), strict=True))
    elif rule.startswith("attention"):
        scores = dict(enumerate(out.attentions[1][0].mean(0)[-1].tolist()))
    else:
        states = getattr(block.self_attn, f"{rule[0]}_proj")(normed)
        if rule[0] == "k":
            states = turned(states.unflatten(-1, (2, -1)), angles(normed, torch.arange(size)[None])).flatten(1)
        scores = dict(enumerate(sum(map(abs, row)) for row in states.tolist()))
    sign = -1 if rule.endswith("-min") else 1
    return [p for places in (visual, text) for p in sorted(places.tolist(), key=lambda p: -sign * scores[p])[:4]]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "rule", ["k-norm", "k-norm-min", "v-norm", "v-norm-min", "attention", "attention-min", "random"]
)
@torch.no_grad()
def test_darts_pivots_by_other_rules(model, rule, exact):
    ids, pixels = prompt(BEFORE, AFTER)
    mask = ids[0] == IMAGE_TOKEN
    out = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True)
    hidden = model.model.language_model.norm(out.hidden_states[2][0])
    pivots = pivots_of(model, ids, pixels, rule, seed=3)
    settings = config("dart", 18, options={"pivots": rule}, seed=3, exact=exact)
    wanted = dart.select(hidden, hidden[None], mask, dart.DartConfig(keep=18, exact=exact), pivots=pivots)
    with dart.prune(model, settings) as handle:
        model(input_ids=ids, pixel_values=pixels)
        one = handle.last.kept[0].tolist()
        mask = (longer := pad(ids, (4, 0))) != 0
        model(input_ids=longer, pixel_values=pixels, attention_mask=mask.long(), position_ids=mask.cumsum(1) - 1)
    assert one == wanted.tolist() and set(one) >= set(pivots[:4])
    assert [p - 4 for p in handle.last.kept[0].tolist()] == one


@torch.no_grad()
def test_other_pivots_never_reach_the_kernels(model, monkeypatch):
    ids, pixels = prompt(BEFORE, AFTER)

    def called(batch, config):
        raise AssertionError("kernels")

    monkeypatch.setattr(dart.kernels, "select_rows", called)
    for rule in ("v-norm", "attention", "random", "k-norm-min"):
        with dart.prune(model, config("dart", 18, options={"pivots": rule})) as handle:
            model(input_ids=ids, pixel_values=pixels)
        assert handle.last.visual_after == [4 + 2 * 8]
    with dart.prune(model, config("dart", 18)), pytest.raises(AssertionError, match="kernels"):
        model(input_ids=ids, pixel_values=pixels)


def test_pivot_rules_that_cannot_be_are_refused_by_name(model):
    with pytest.raises(ValueError, match="'dart' needs attention.*layer=1"):
        dart.prune(model, config("dart", layer=0, options={"pivots": "attention"}))
    hidden = torch.randn(20, 4)
    with pytest.raises(ValueError, match="without a model, not 'dart'"):
        dart.select(hidden, hidden[None], torch.arange(20) < 16, config("dart", options={"pivots": "v-norm"}))


@pytest.mark.parametrize("name", ["evs", "pooling"])
@torch.no_grad()
def test_generate_knows_the_grid_of_images_that_it_encodes_first(name):
    """Also for the repeated rows of beams, of which each has images of its own."""
    model = qwen("qwen2_vl")
    clip, image = ("video", 2, 8, 4), ("image", 1, 4, 10) if name == "pooling" else ("video", 4, 4, 4)
    rows = [qwen_prompt(3, ("video", 3, 4, 6), 5), qwen_prompt(6, clip, 4, image, 5, seed=1)]
    given = qwen_batch(*rows)
    with dart.prune(model, config(name, 2 / 3)) as handle:
        model(**given)
        wanted = handle.last.kept
        for beams in (1, 3):
            model.generate(**given, max_new_tokens=2, do_sample=False, num_beams=beams)
            kept = [row.tolist() for row in handle.last.kept]
            assert kept == [row.tolist() for row in wanted for _ in range(beams)]
