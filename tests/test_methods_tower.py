"""Methods that act before the LLM, each against a slow reference in plain loops, and the vision tower's signals."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, PATCHES, prompt, tiny_llava
from qwen_golden import batch as qwen_batch
from qwen_golden import loaded as qwen
from qwen_golden import prompt as qwen_prompt
from test_methods import BEFORE, CLOSE, SIDE, attention_row, embed, images_of, reference, spying, staying
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import pad
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

import dart
from dart.engine.selection import merge_states
from dart.engine.signals import Signals
from dart.families import family_of
from dart.families.tiles import merged_patches
from dart.strategies.base import GroupPlan, Tokens, greedy

AFTER = 6


# References. Each is given what a method looks at as numpy arrays: of N visual tokens `raw` [N, D] (the LLM's inputs),
# `features` [N, E], `attention`, `early`, `received`, `middle` [N], `grid` [N, 4]; `words` [Q, D] of the question. It
# returns (indices of what stays, {index: indices whose mean it becomes}).


def cosine(a, b):
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def first_best(candidates, score):
    """The candidate with the highest score; of equals the first."""
    return max(candidates, key=lambda i: (score(i), -i))


def take(keep, count, score):
    """Greedily: score(i, chosen)."""
    chosen = []
    while len(chosen) < keep:
        chosen.append(first_best([i for i in range(count) if i not in chosen], lambda i: score(i, chosen)))
    return sorted(chosen)


def scaled(values, floor=0.0):
    values = np.asarray(values)
    return (values - values.min() + floor) / (values.max() - values.min())


def question_relevance(s):
    return scaled([-np.mean([cosine(x, word) for word in s.words]) for x in s.raw], 1e-6)


def largest_determinant(features, quality, keep):
    cosines = np.array([[cosine(a, b) for b in features] for a in features])
    np.fill_diagonal(cosines, 1)
    kernel = cosines * np.outer(quality, quality)
    return take(keep, len(features), lambda i, chosen: np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]))


def cdpruner(s, keep, theta=None):
    quality = question_relevance(s)
    if theta is not None:
        quality = np.exp(theta / (2 * (1 - theta)) * quality)
    return largest_determinant(s.raw, quality, keep), {}


def distinctiveness(x):
    return scaled([-np.mean([cosine(x[i], x[j]) for j in range(len(x)) if j != i]) for i in range(len(x))])


def cenprune(s, keep, base="divprune"):
    distinct, centred = distinctiveness(s.raw), s.raw - s.raw.mean(0)
    if base == "cdpruner":
        return largest_determinant(centred, question_relevance(s) * distinct, keep), {}

    def score(i, chosen):
        if not chosen:
            return min(1 - cosine(centred[i], centred[j]) for j in range(len(centred)) if j != i)
        return distinct[i] * min(1 - cosine(centred[i], centred[j]) for j in chosen)

    return take(keep, len(centred), score), {}


def covered(rows, keep, weights):
    def score(j, chosen):
        best = [max([0.0, *(row[c] for c in chosen)]) for row in rows]
        return weights[j] * sum(max(0.0, row[j] - top) for row, top in zip(rows, best, strict=True))

    return take(keep, len(rows[0]), score)


def scope(s, keep, alpha=1.0):
    rows = [[cosine(a, b) for b in s.features] for a in s.features]
    return covered(rows, keep, [a**alpha for a in s.attention]), {}


def mmtok(s, keep):
    def softmax(row, temperature):
        row = np.exp(np.array(row) / temperature - max(row) / temperature)
        return row / row.sum()

    text = [softmax([cosine(word, x) for x in s.raw], 0.02) / len(s.words) for word in s.words]
    vision = [0.5 * softmax([cosine(a, b) for b in s.features], 0.2) / len(s.features) for a in s.features]
    return covered([*text, *vision], keep, [1.0] * len(s.raw)), {}


def vispruner(s, keep, share=0.5):
    order = sorted(range(len(s.attention)), key=lambda i: (-s.attention[i], i))
    strong, rest = order[: int(keep * share)], order[int(keep * share) :]
    left = keep - len(strong)
    while left and len(rest) > left:
        ones, others = rest[::2], rest[1::2]
        twin = {i: max(cosine(s.features[i], s.features[j]) for j in others) for i in ones}
        ones.sort(key=lambda i: -twin[i])
        rest = ones[min(8, len(rest) - left) :] + others
    return sorted(strong + rest[:left]), {}


def holov(s, keep, strips=16, weight=0.09):
    count = len(s.raw)
    sizes = [count // strips + (k < count % strips) for k in range(strips)]
    parts = [list(range(sum(sizes[:k]), sum(sizes[: k + 1]))) for k in range(strips) if sizes[k]]
    spread = np.zeros(count)
    for part in parts:
        for i in part:
            others = [cosine(s.raw[i], s.raw[j]) for j in part if j != i]
            spread[i] = np.var(others) if others else 0
    token = s.attention + weight * spread * s.attention.mean() / (spread.mean() or 1)
    scores = [token[part].mean() for part in parts]
    quota = [int(keep * score / sum(scores)) for score in scores]
    ranked = sorted(range(len(parts)), key=lambda k: -scores[k])
    quota = [min(q, len(part)) for q, part in zip(quota, parts, strict=True)]
    while sum(quota) < keep:
        for k in ranked:
            if sum(quota) < keep and quota[k] < len(parts[k]):
                quota[k] += 1
    chosen = [i for part, q in zip(parts, quota, strict=True) for i in sorted(part, key=lambda i: -s.attention[i])[:q]]
    return sorted(chosen), {}


def hiprune(s, keep, alpha=0.1):
    anchors = sorted(range(len(s.middle)), key=lambda i: -s.middle[i])[: round(keep * alpha / 5)]
    places = {tuple(place): i for i, place in enumerate(s.grid.tolist())}
    buffers = set()
    for anchor in anchors:
        frame, row, column, tile = s.grid[anchor].tolist()
        for near in ((row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)):
            if (frame, *near, tile) in places:
                buffers.add(places[(frame, *near, tile)])
    deep = sorted(range(len(s.middle)), key=lambda i: -s.received[i])
    chosen = anchors + [i for i in deep if i in buffers and i not in anchors]
    chosen += [i for i in deep if i not in chosen]
    return sorted(chosen[:keep]), {}


def tome(s, keep, rounds=23):
    groups = [[i] for i in range(len(s.raw))]  # in order of their position, the last one that took another in
    places = list(range(len(s.raw)))
    step = math.ceil((len(groups) - keep) / rounds)
    while len(groups) > keep:
        means = [s.raw[group].mean(0) for group in groups]
        edges = []
        for a in range(0, len(groups), 2):
            b = max(range(1, len(groups), 2), key=lambda b: (cosine(means[a], means[b]), -b))
            edges.append((cosine(means[a], means[b]), a, b))
        edges.sort(key=lambda edge: -edge[0])
        merged = edges[: min(step, len(groups) - keep, len(groups) // 2)]
        for _, a, b in merged:
            groups[b] = groups[b] + groups[a]
        gone = {a for _, a, _ in merged}
        places = [place for k, place in enumerate(places) if k not in gone]
        groups = [group for k, group in enumerate(groups) if k not in gone]
    return places, dict(zip(places, groups, strict=True))


def vscan(s, keep, share=0.5, window=6):
    cells = {}
    for i, (frame, row, column, tile) in enumerate(s.grid.tolist()):
        cells.setdefault((tile, frame, row // window, column // window), []).append(i)
    claims = []  # of each token: how much of its window is there before it
    for cell in cells.values():
        for rank, i in enumerate(sorted(cell, key=lambda i: -s.early[i])):
            claims.append(((rank + 0.5) / len(cell), -s.early[i], i))
    chosen = [i for *_, i in sorted(claims)[: int(share * keep)]]
    deep = sorted(range(len(s.raw)), key=lambda i: -s.attention[i])
    chosen += [i for i in deep if i not in chosen][: keep - len(chosen)]
    groups = {i: [i] for i in sorted(chosen)}
    for i in range(len(s.raw)):
        if i not in groups:
            groups[max(groups, key=lambda j: cosine(s.raw[i], s.raw[j]))].append(i)
    return sorted(chosen), groups


CASES = {
    "cdpruner": (cdpruner, {}),
    "cdpruner-theta": (cdpruner, {"theta": 0.7}),
    "cenprune": (cenprune, {}),
    "cenprune-cdpruner": (cenprune, {"base": "cdpruner"}),
    "scope": (scope, {}),
    "scope-salience": (scope, {"alpha": 0.5}),
    "mmtok": (mmtok, {}),
    "vispruner": (vispruner, {}),
    "vispruner-fastervlm": (vispruner, {"share": 1.0}),
    "holov": (holov, {}),
    "holov-spread": (holov, {"strips": 5, "weight": 3.0}),
    "hiprune": (hiprune, {}),
    "hiprune-anchors": (hiprune, {"alpha": 1.5}),
    "tome": (tome, {}),
    "tome-rounds": (tome, {"rounds": 3}),
    "vscan": (vscan, {}),
    "vscan-windows": (vscan, {"share": 1.0, "window": 2}),
}


def config(case, keep, **settings):
    return dart.DartConfig(keep=keep, strategy=case.split("-")[0], **{"options": CASES[case][1], **settings})


# On random features.


def random_signals(count=30, seed=0, width=40):
    """Signals of a grid of five rows: two clusters of features, so that similarities differ."""
    random = np.random.default_rng(seed)
    middle = random.normal(size=(2, width))[random.integers(2, size=count)]
    places = np.arange(count)
    return SimpleNamespace(
        raw=random.normal(size=(count, width)) + middle,
        features=random.normal(size=(count, 16)) + 0.5,
        words=random.normal(size=(3, width)),
        grid=np.stack([places * 0, places // (count // 5), places % (count // 5), places * 0], 1),
        **{name: random.dirichlet(np.ones(count)) for name in ("attention", "early", "received", "middle")},
    )


def reduced(case, s, keep, questions=True, dtype=torch.float32, **settings):
    """(indices of what stays, states that they have) by the strategy, the visual tokens at positions 2 and up."""
    strategy, settings = dart.strategies.get(case.split("-")[0]), config(case, keep, **settings)
    count, words = len(s.raw), len(s.words)
    visual, text = np.arange(2, 2 + count), np.arange(2 + count, 2 + count + words)

    def spread(values):
        values = torch.as_tensor(values)
        values = values.to(dtype) if values.is_floating_point() else values
        full = values.new_zeros(2 + count + words, *values.shape[1:])
        full[2 : 2 + count] = values
        return full

    given = {
        "embeddings": spread(s.raw),
        "question": torch.from_numpy(text if questions else text[:0]),
        "tower_features": spread(s.features),
        "tower_attention": spread(s.attention),
        "tower_attention@0.25": spread(s.early),
        "tower_received": spread(s.received),
        "tower_received@0.375": spread(s.middle),
        "grid": spread(s.grid),
    }
    given["embeddings"][2 + count :] = torch.from_numpy(s.words)
    needs = strategy.needed(settings)
    signals = Signals(given["embeddings"], None, {k: v for k, v in given.items() if k in needs}, settings.strategy)
    plan = GroupPlan(visual, text, float(keep), keep)
    reduction = strategy.reduce(Tokens(torch.from_numpy(visual), torch.from_numpy(text), signals, settings, plan))
    assert (reduction.keep.diff() > 0).all() and reduction.keep.numel() == keep
    states = given["embeddings"]
    if reduction.merge is not None:
        states = merge_states(states[None], [[(reduction.keep, reduction.merge)]])[0]
    return (reduction.keep - 2).tolist(), states[reduction.keep]


@pytest.mark.parametrize("case", CASES)
def test_a_method_is_its_reference(case):
    wanted, options = CASES[case]
    for keep, count, seed in ((10, 30, 0), (13, 30, 1), (1, 30, 2), (29, 30, 3), (7, 35, 4)):
        s = random_signals(count, seed)
        places, groups = wanted(s, keep, **options)
        kept, states = reduced(case, s, keep)
        assert kept == places, (keep, seed)
        means = [s.raw[groups.get(place, [place])].mean(0) for place in places]
        torch.testing.assert_close(states, torch.tensor(np.array(means)).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_any_number_and_any_dtype(case):
    """Half precision, all tokens alike and a budget of nothing: as many different tokens as asked for."""
    s = random_signals()
    assert reduced(case, s, 0)[0] == []
    for dtype in (torch.bfloat16, torch.float16):
        reduced(case, s, 11, dtype=dtype)
    for name in ("raw", "features", "attention", "early", "received", "middle"):
        setattr(s, name, np.ones_like(getattr(s, name)))
    kept, _ = reduced(case, s, 11)
    if case.split("-")[0] in ("cdpruner", "scope"):
        assert kept == list(range(11))  # of equals the first ones


def test_without_a_question_all_tokens_are_equally_relevant():
    s = random_signals()
    assert reduced("cdpruner", s, 9, questions=False)[0] == largest_determinant(s.raw, np.ones(30), 9)
    with_words = reduced("mmtok", s, 9)[0]
    s.words = s.words[:0]
    assert reduced("mmtok", s, 9)[0] == mmtok(s, 9)[0] != with_words


def test_the_largest_determinant_goes_on_where_the_rank_ends():
    """More tokens than dimensions: no NaN, and the most relevant ones follow."""
    s = random_signals(width=4)
    kept = reduced("cdpruner", s, 12)[0]
    first = largest_determinant(s.raw, question_relevance(s), 4)
    rest = sorted((i for i in range(30) if i not in first), key=lambda i: -question_relevance(s)[i])[:8]
    assert kept == sorted(first + rest)


def test_newlines_are_not_what_has_no_twin():
    """Tokens that no patch makes have features and attention of 0: they go first, not last."""
    s = random_signals()
    s.features[::6], s.attention[::6] = 0, 0
    kept = reduced("vispruner", s, 12)[0]
    assert not set(kept) & set(range(0, 30, 6))


def test_a_strip_that_overflows_gives_its_surplus_away():
    """One strip has nearly all attention: its quota would be 12 of its 2 tokens."""
    s = random_signals()
    s.attention = np.where(np.arange(30) < 2, 0.4, 0.2 / 28) + np.linspace(0, 1e-4, 30)
    kept = reduced("holov", s, 12)[0]
    assert kept == holov(s, 12)[0] and kept[:2] == [0, 1]


def test_neighbours_end_where_the_image_does():
    """The only anchor is the last token of the first row of six: the first one of the next row is no neighbour."""
    s = random_signals()
    s.middle = np.where(np.arange(30) == 5, 1.0, 0.0)
    s.received = np.linspace(0, 1, 30)
    assert reduced("hiprune", s, 15, options={"alpha": 1 / 3})[0] == [4, 5, 11, *range(18, 30)]


def test_greedy_takes_nothing_twice():
    gains = torch.tensor([1.0, 2.0, 2.0, 2.0])
    assert greedy(gains, 3, lambda place: gains).tolist() == [1, 2, 3]
    assert greedy(gains, 3, lambda place: gains, torch.tensor([3, 0])).tolist() == [0, 1, 3]


# On a model.


def deep_llava(attention="sdpa"):
    """A LLaVA whose tower has four layers."""
    torch.manual_seed(5)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=24, patch_size=4,
        initializer_factor=8.0,
    )  # fmt: skip
    text = tiny_llava().config.text_config
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    ).eval()
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model


@pytest.fixture(scope="module")
def model():
    return deep_llava()


@pytest.fixture(scope="module")
def eager():
    return deep_llava("eager")


def seen_by(eager, ids, pixels, image):
    """What the methods should see of one image, from the eager tower's own outputs."""
    tower = eager.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    embeds = embed(eager, ids, pixels)[0].double().numpy()
    cls = [layer[image, :, 0, 1:].mean(0).numpy() for layer in tower.attentions]
    received = [layer[image].mean((0, 1))[1:].numpy() for layer in tower.attentions]
    places = np.arange(PATCHES)
    return SimpleNamespace(
        raw=embeds[images_of(ids[0])[image].numpy()],
        features=tower.hidden_states[-2][image, 1:].double().numpy(),
        words=embeds[-AFTER:],
        grid=np.stack([places * 0, places // SIDE, places % SIDE, places * 0 + image], 1),
        attention=cls[-2], early=cls[0], received=received[-2], middle=received[1],
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_pruned_model_is_the_reference(model, eager, case):
    """Two images in one prompt: what stays, and the logits."""
    ids, pixels = prompt(BEFORE, AFTER, images=2)
    method, options = CASES[case]
    factor = 3 if case.startswith("vscan") else 1  # what stays before the LLM, for one at the end
    parts, means = [], {}
    for image, places in enumerate(images_of(ids[0])):
        kept, groups = method(seen_by(eager, ids, pixels, image), 8 * factor, **options)
        parts.append(places[torch.tensor(kept)])
        means |= {int(places[place]): places[torch.tensor(group)] for place, group in groups.items()}

    def change(hidden):
        result = hidden.clone()
        for place, group in means.items():
            result[place] = hidden[group].mean(0)
        return result

    stages = {0: (staying(ids[0], parts), change)}

    def choose(layer, hidden, angles, seen):
        row = attention_row(eager.model.language_model.layers[layer], hidden, angles, seen, ids.shape[1] - 1)
        left = [places[seen[places]] for places in images_of(ids[0])]
        return staying(ids[0], [p[row[p].sort(descending=True).indices[:8].sort().values] for p in left]), None

    if factor > 1:
        stages[2] = None
    wanted, rows = reference(eager, embed(eager, ids, pixels), stages, choose)
    with dart.prune(model, config(case, 16)) as handle:
        logits = model(input_ids=ids, pixel_values=pixels).logits[0]
    assert handle.last.rows[0].tolist() == rows[max(rows)].tolist()
    assert handle.last.visual_per_layer == [[16 * factor] * 2 + [16] * 2]
    torch.testing.assert_close(logits, wanted, **CLOSE)


@pytest.mark.parametrize("case", [case for case in CASES if "-" not in case])
@torch.no_grad()
def test_a_padded_batch_equals_its_rows_alone(model, case):
    one, two = prompt(3, AFTER, 1, seed=1), prompt(8, 9, 2, seed=2)
    ids = torch.cat([pad(one[0], (two[0].shape[1] - one[0].shape[1], 0)), two[0]])
    options = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with dart.prune(model, config(case, 0.25)) as handle:
        alone = [model.generate(input_ids=row, pixel_values=pixels, **options) for row, pixels in (one, two)]
        pixels = torch.cat([one[1], two[1]])
        both = model.generate(input_ids=ids, pixel_values=pixels, attention_mask=(ids != 0).long(), **options)
    assert handle.last.visual_after == [PATCHES // 4, PATCHES // 2]
    for row, single in enumerate(alone):
        torch.testing.assert_close(torch.stack(both.logits, 1)[row], torch.stack(single.logits, 1)[0], **CLOSE)


def test_vscan_reaches_a_mean_over_the_layers(model):
    """As the paper counts: half of the layers with three times the tokens of the other half."""
    ids, pixels = prompt(BEFORE, AFTER)
    with dart.prune(model, config("vscan", 12, budget_kind="mean-over-layers")) as handle:
        model(input_ids=ids, pixel_values=pixels)
    assert handle.last.visual_per_layer == [[18, 18, 6, 6]]


# The vision tower's signals.


OF_TOWER = [f"tower_{name}" for name in ("features", "keys", "attention", "received")]


@pytest.fixture
def spied():
    with spying("spy", [*OF_TOWER, "tower_attention@0.25", "tower_received@1"]) as seen:
        yield seen


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_of_any_layer_is_that_of_the_eager_tower(eager, spied, attention):
    model, (ids, pixels) = deep_llava(attention), prompt(BEFORE, AFTER, images=2)
    with dart.prune(model, dart.DartConfig(keep=0.5, strategy="spy")):
        model(input_ids=ids, pixel_values=pixels)
    maps = eager.model.vision_tower(pixels, output_attentions=True).attentions
    for image, seen in enumerate(spied):
        torch.testing.assert_close(seen["tower_attention"], maps[2][image, :, 0, 1:].mean(0))
        torch.testing.assert_close(seen["tower_attention@0.25"], maps[0][image, :, 0, 1:].mean(0))
        torch.testing.assert_close(seen["tower_received"], maps[2][image].mean((0, 1))[1:])
        torch.testing.assert_close(seen["tower_received@1"], maps[3][image].mean((0, 1))[1:])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("cdpruner", {"theta": 1}, "theta"),
        ("cenprune", {"base": "fastv"}, "base"),
        ("cenprune", {"clip": "somewhere"}, "clip.*'cdpruner'"),
        ("mmtok", {"text_temperature": 0}, "temperature"),
        ("scope", {"alpha": -1}, "alpha"),
        ("vispruner", {"share": 2}, "share"),
        ("holov", {"strips": 0}, "strips"),
        ("hiprune", {"alpha": 6}, "alpha"),
        ("hiprune", {"depth": 2}, "'hiprune'.*depth of 2"),
        ("tome", {"rounds": 0}, "rounds"),
        ("vscan", {"fraction": 0}, "fraction"),
        ("vscan", {"window": 0}, "window"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        dart.prune(model, dart.DartConfig(keep=9, strategy=name, options=options))


# CLIP beside the model.


def words(folder, names, **special):
    """A tokenizer of whole words, saved in `folder`."""
    model = WordLevel({name: number for number, name in enumerate([*names, *special.values()])}, unk_token=names[0])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=names[0], **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip_folders(tmp_path_factory):
    """(folder of a CLIP whose text tower takes four words at once, folder of the LLM's tokenizer)"""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(8)
    sizes = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_factor": 8.0}
    vision = {**sizes, "hidden_size": 16, "image_size": 24, "patch_size": 4}
    text = {**sizes, "hidden_size": 12, "max_position_embeddings": 6, "vocab_size": 102, "eos_token_id": 101}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).save_pretrained(folder)
    words(folder, [f"w{number}" for number in range(100)], bos_token="<s>", eos_token="</s>")
    return str(folder), words(tmp_path_factory.mktemp("llm"), [f"w{number}" for number in range(100)])


@torch.no_grad()
def test_cdpruner_asks_clip_where_there_is_one(model, eager, clip_folders):
    """Six words of a question are two pieces of CLIP's, each between its begin and end."""
    ids, pixels = prompt(BEFORE, AFTER)
    options = {"clip": clip_folders[0], "tokenizer": clip_folders[1]}
    with dart.prune(model, dart.DartConfig(keep=9, strategy="cdpruner", options=options)) as handle:
        model(input_ids=ids, pixel_values=pixels)
        kept = handle.last.kept[0] - BEFORE
        model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=1)
        assert handle.last.kept[0].tolist() == (kept + BEFORE).tolist()
    s, clip = seen_by(eager, ids, pixels, 0), CLIPModel.from_pretrained(clip_folders[0])
    question = ids[0, -AFTER:].tolist()
    texts = [clip.text_projection(clip.text_model(torch.tensor([[100, *piece, 101]])).pooler_output)[0]
             for piece in (question[:4], question[4:])]  # fmt: skip
    images = clip.visual_projection(clip.vision_model.post_layernorm(torch.tensor(s.features).float()))
    similarity = [np.mean([cosine(image.numpy(), text.numpy()) for text in texts]) for image in images]
    assert kept.tolist() == largest_determinant(s.raw, scaled([-each for each in similarity], 1e-6), 9)
    assert kept.tolist() != cdpruner(s, 9)[0]


@torch.no_grad()
def test_clip_is_asked_the_question_of_this_projects_llava(clip_folders):
    """Its prompts hold one negative id for an image."""
    golden, asked = pytest.importorskip("llava_golden"), []
    model, (ids, pixels) = golden.loaded()[1], golden.sample("a")
    wanted = ids[0, int((ids[0] < 0).nonzero()) + 1 :].tolist()
    padded = torch.cat([ids, torch.full((1, 3), 5)], 1), torch.cat([torch.ones_like(ids), torch.zeros(1, 3)], 1)
    options = {"clip": clip_folders[0], "tokenizer": clip_folders[1]}
    with dart.prune(model, dart.DartConfig(keep=9, strategy="cdpruner", options=options)) as handle:
        handle.tower.clip = lambda features, words: asked.append(words) or features[:, 0].float()
        model(ids, images=pixels)
        model(padded[0], images=pixels, attention_mask=padded[1])
        model.generate(ids, images=pixels, max_new_tokens=2, num_beams=2, do_sample=False)
    assert asked == [wanted] * 4


def test_a_clip_that_does_not_fit_is_refused_by_name(model, clip_folders, tmp_path):
    ids, pixels = prompt(BEFORE, AFTER)

    def refused(message, **options):
        settings = dart.DartConfig(keep=9, strategy="cdpruner", options=options)
        named = pytest.raises(ValueError, match=f"'cdpruner' cannot prune Llava.*{message}")
        with named, dart.prune(model, settings):
            model(input_ids=ids, pixel_values=pixels)

    refused("option clip", clip=str(tmp_path / "nothing"))
    refused("option tokenizer must name", clip=clip_folders[0])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=sizes)).save_pretrained(tmp_path)
    words(tmp_path, ["w0"], bos_token="<s>", eos_token="</s>")
    refused("has states of 8 numbers, the model's has 16", clip=str(tmp_path), tokenizer=clip_folders[1])


# Towers of other families.


@pytest.fixture
def joint():
    signals = ("tower_features", "tower_attention", "tower_received", "tower_received@0.25")
    with spying("joint-spy", signals, layer=1) as seen:
        yield seen


JOINT = {"keep": 0.5, "strategy": "joint-spy", "scope": "joint"}


def qwen_places(grids, window):
    """(image, frame, row, column, window) of each patch in the tower's order: frame by frame, window by window of
    `window` x `window` tokens (0: one window), token by token of 2 x 2 patches."""
    places = []
    for image, (frames, high, wide) in enumerate(grids):
        side = window or max(high, wide)
        for frame in range(frames):
            for top in range(0, high // 2, side):
                for left in range(0, wide // 2, side):
                    for row in range(top, min(top + side, high // 2)):
                        for column in range(left, min(left + side, wide // 2)):
                            for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                                places.append((image, frame, 2 * row + y, 2 * column + x, (top, left)))
    return places


def qwen_attention(attention, normed, places, windowed, sampled):
    """[patches] in the tower's order, by hand: what each patch receives from the patches of its frame or window."""
    heads, size = attention.num_heads, normed.shape[-1] // attention.num_heads
    query, key, _ = attention.qkv(normed).view(len(normed), 3, heads, size).unbind(1)
    frequencies = 10000.0 ** -(torch.arange(0, size // 2, 2) / (size // 2))
    angles = torch.stack([torch.cat([row * frequencies, column * frequencies] * 2) for _, _, row, column, _ in places])[
        :, None
    ]

    def turned(states):
        first, second = states.chunk(2, -1)
        return states * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    query, key, result, groups = turned(query), turned(key), torch.zeros(len(places)), {}
    for number, (image, frame, _, _, window) in enumerate(places):
        groups.setdefault((image, frame, window if windowed else None), []).append(number)
    for members in groups.values():
        count = min(64, len(members)) if sampled else len(members)
        asking = [members[k * len(members) // count] for k in range(count)]
        for head in range(heads):
            scores = query[asking, head] @ key[members, head].T / size**0.5
            result[members] += scores.softmax(1).mean(0) / heads
    return result


@pytest.mark.parametrize("family, layer, windowed", [("qwen2_vl", 1, False), ("qwen2_5_vl", 1, True)])
@pytest.mark.parametrize("batched", [False, True])
@torch.no_grad()
def test_qwens_tower_is_that_by_hand(joint, family, layer, windowed, batched):
    """Images of one row, or of two: 2 x 2 patches a token, in windows out of order in Qwen2.5-VL."""
    model = qwen(family)
    grids = [(1, 8, 12), (1, 6, 4), (1, 10, 8)]
    first, second = (("image", *grid) for grid in grids[:2]), ("image", *grids[2])
    rows = [qwen_prompt(3, *first, 4), qwen_prompt(2, second, 5, seed=1)]
    inputs = qwen_batch(*rows) if batched else rows[0]
    grids, caught = grids if batched else grids[:2], {}
    tower = model.model.visual
    last, early = len(tower.blocks) - 1, max(round(0.25 * len(tower.blocks)), 1) - 1
    hooks = [
        tower.merger.register_forward_pre_hook(lambda module, args: caught.update(features=args[0])),
        *(tower.blocks[n].norm1.register_forward_hook(lambda module, args, out, n=n: caught.update({n: out}))
          for n in (early, last)),
    ]  # fmt: skip
    with dart.prune(model, dart.DartConfig(**JOINT)):
        model(**inputs)
    for hook in hooks:
        hook.remove()
    places = qwen_places(grids, 4 if windowed else 0)
    wanted = {
        "tower_features": caught["features"],
        "tower_attention": qwen_attention(tower.blocks[last].attn, caught[last], places, False, True),
        "tower_received": qwen_attention(tower.blocks[last].attn, caught[last], places, False, False),
        "tower_received@0.25": qwen_attention(tower.blocks[early].attn, caught[early], places, windowed, False),
    }
    by_token = {}
    for number, (image, frame, row, column, _) in enumerate(places):
        by_token.setdefault((image, frame, row // 2, column // 2), []).append(number)
    for name, values in wanted.items():
        tokens = torch.stack([values[by_token[token]].mean(0) for token in sorted(by_token)])
        torch.testing.assert_close(torch.cat([seen[name] for seen in joint]), tokens, atol=1e-5, rtol=1e-4)


def tiled_llava(kind, attention="sdpa"):
    """LLaVA-NeXT with a CLIP, LLaVA-OneVision with a SigLIP: views of 6 x 6 patches."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"image_size": 24, "patch_size": 4}
    grid = {"image_grid_pinpoints": [[24, 48], [48, 24], [48, 48], [96, 96]], "image_token_id": IMAGE_TOKEN}
    text = tiny_llava().config.text_config
    if kind == "next":
        vision = CLIPVisionConfig(**sizes, initializer_factor=8.0)
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(vision_config=vision, text_config=text, **grid))
    else:
        settings = {"vision_config": SiglipVisionConfig(**sizes), "text_config": text, "video_token_id": 98}
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**settings, **grid))
    model = model.eval()
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model


def packed():
    """(view, patch) of the tokens of an image of 14 x 48 pixels in two tiles side by side: the overview, then rows 1 to
    4 of the tiles' six (the first and the last are padding), each with a newline, which has no patch."""
    tokens = [(0, patch) for patch in range(36)]
    for row in range(1, 5):
        tokens += [(1 + column // 6, 6 * row + column % 6) for column in range(12)] + [None]
    return tokens


@pytest.mark.parametrize("generates", [False, True])
@pytest.mark.parametrize("kind", ["next", "onevision"])
@torch.no_grad()
def test_tiles_are_found_in_the_tower(joint, kind, generates):
    model, eager, tokens = tiled_llava(kind), tiled_llava(kind, "eager"), packed()
    pixels = torch.randn(1, 3, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    ids = torch.tensor([[5, 6, *[IMAGE_TOKEN] * len(tokens), 7, 8]])
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[14, 48]])}
    with dart.prune(model, dart.DartConfig(**JOINT)):
        if generates:
            model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        else:
            model(**inputs)
    tower = eager.model.vision_tower(pixels[0], output_attentions=True, output_hidden_states=True)
    begin, layer = (1, -2) if kind == "next" else (0, -1)
    maps = tower.attentions[layer].mean(1)
    wanted = {
        "tower_features": model.model.vision_tower(pixels[0], output_hidden_states=True).hidden_states[layer][
            :, begin:
        ],
        "tower_attention": maps[:, 0, 1:] if begin else maps.mean(1),
        "tower_received": maps.mean(1)[:, begin:],
        "tower_received@0.25": tower.attentions[0].mean((1, 2))[:, begin:],
    }
    assert joint
    for seen in joint:
        for name, values in wanted.items():
            rows = [values[place] if place else torch.zeros_like(values[0, 0]) for place in tokens]
            torch.testing.assert_close(seen[name], torch.stack(rows), atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_places_of_tiles_and_the_ends_of_their_rows(model):
    model, tokens = tiled_llava("next"), packed()
    spans = torch.tensor([[0, *[1 if place is None or place[0] == 0 else place[0] + 1 for place in tokens], 0]])
    grid = family_of(model).grid(model, {"image_sizes": torch.tensor([[14, 48]])}, spans)[0, 1:-1]
    for token, before, place in zip(tokens, [None, *tokens], grid.tolist(), strict=False):
        view, patch = token or before
        assert place[:3] == [0, patch // 6, patch % 6 if token else 6]
    assert grid[:36, 3].unique().tolist() == [0]
    assert family_of(model).grid(model, {}, spans) is None


def test_tokens_that_are_no_patches_are_refused_by_name():
    """LLaVA-OneVision scales the features of 16 tiles down."""
    model, pixels = tiled_llava("onevision"), torch.randn(1, 17, 3, 24, 24)
    size = torch.tensor([[96, 96]])
    count = len(model.model.get_image_features(pixels, size, return_dict=True).pooler_output[0])
    ids = torch.tensor([[5, *[IMAGE_TOKEN] * count, 7]])
    refused = pytest.raises(ValueError, match="'scope' cannot prune LlavaOnevision.*scaled down")
    with dart.prune(model, dart.DartConfig(keep=9, strategy="scope")), refused:
        model(input_ids=ids, pixel_values=pixels, image_sizes=size)


def test_a_tower_that_ran_twice_is_refused_by_name():
    """Images and a video, each a run of its own."""
    model = qwen("qwen2_vl")
    inputs = qwen_prompt(3, ("image", 1, 8, 4), 4, ("video", 2, 4, 6), 5)
    refused = pytest.raises(ValueError, match="'scope' cannot prune Qwen2VL.*ran 2 times")
    with dart.prune(model, dart.DartConfig(keep=9, strategy="scope")), refused:
        model(**inputs)


def test_images_are_told_apart_by_their_newlines():
    """An image in 2 x 2 tiles, cut to rows of ten; one view and its newline; one view alone; tiles in one column."""
    rows = [False] * 10 + [True]
    newlines = [False] * 36 + rows * 12 + [False] * 36 + [True] + [False] * 36 + [False] * 36 + [*rows[4:]] * 9
    found = merged_patches(torch.tensor(newlines), [(6, 12), (12, 12), (12, 6)], 6)
    assert [count for _, count in found] == [36 + 144, 36, 36, 36 + 72]
    found = [numbers for numbers, _ in found]
    assert [len(each) for each in found] == [36 + 132, 37, 36, 36 + 63]
    assert found[0][36:47].tolist() == [37, 38, 39, 40, 41, 72, 73, 74, 75, 76, -1]  # columns 1 to 10 of twelve
    assert found[1].tolist() == [*range(36), -1] and found[2].tolist() == list(range(36))
    assert found[3][36:43].tolist() == [42, 43, 44, 45, 46, 47, -1]  # rows 1 to 9 of twelve


@torch.no_grad()
def test_both_classes_of_llava_next_give_the_same_signals(joint):
    """This project's finds tiles by the newlines in a batch of two images, transformers' by the images' sizes."""
    golden = pytest.importorskip("llava_next_golden")
    test = pytest.importorskip("test_llava_next")
    ids, mask, images, sizes = test.both_in_a_batch()
    model = golden.loaded()[1]
    converted = test.convert_model(model, test.IMAGE_ID)
    tall, pixels, size = golden.sample("tall")
    with dart.prune(model, dart.DartConfig(**JOINT)):
        model(ids, images=images, image_sizes=sizes, attention_mask=mask)
        model.generate(tall, images=pixels, image_sizes=size, max_new_tokens=1, num_beams=2, do_sample=False)
    ours, joint[:] = list(joint), []
    with dart.prune(converted, dart.DartConfig(**JOINT)):
        for name in ("wide", "tall"):
            converted(**test.for_transformers(name))
    assert len(ours) == 4
    for seen, wanted in zip(ours, [joint[0], *[joint[1]] * 3], strict=True):
        for name, values in seen.items():
            torch.testing.assert_close(values, wanted[name], atol=1e-5, rtol=1e-3)
