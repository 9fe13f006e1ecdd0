"""Strategies from the literature, each against a slow reference written out here; the contract that they rest on."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, PATCHES, prompt, tiny_llava
from PIL import Image
from qwen_golden import IMAGE, VIDEO
from qwen_golden import batch as qwen_batch
from qwen_golden import loaded as qwen
from qwen_golden import prompt as qwen_prompt
from torch.nn.functional import avg_pool2d, pad
from transformers import (
    Exaone4Config,
    Gemma3TextConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import dart
from dart.engine.budgets import stage_budget
from dart.engine.signals import Signals
from dart.families import Family
from dart.strategies import Merge, Reduction, Stage, Strategy, register
from dart.strategies.base import REGISTRY, GroupPlan, Tokens

LAYERS, SIDE, STEPS = 4, 6, 4
CLOSE = {"atol": 1e-4, "rtol": 0}
BEFORE, AFTER = 5, 7
METHODS = {
    "fastv": {},
    "pyramiddrop": {},
    "divprune": {},
    "visionzip": {},
    "pooling": {},
    "flowcut": {},
    "fastv-window": {"strategy": "fastv", "options": {"window": 3}},
    "fastv-unrotated": {"strategy": "fastv", "options": {"rope": False}},
    "divprune-inside": {"strategy": "divprune", "options": {"layer": 2}},
    "pooling-inside": {"strategy": "pooling", "options": {"layer": 2}},
    "visionzip-average": {"strategy": "visionzip", "options": {"average": True, "contextual": 0.5}},
}


def config(name, keep=9, **settings):
    return dart.DartConfig(keep=keep, **{"strategy": name, **METHODS.get(name, {}), **settings})


@contextmanager
def registered(name, kind):
    register(name)(kind)
    try:
        yield
    finally:
        del REGISTRY[name]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@torch.no_grad()
def embed(model, ids, pixels):
    embeds = model.get_input_embeddings()(ids)
    features = torch.cat(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))
    return embeds.masked_scatter((ids == IMAGE_TOKEN)[..., None], features)


def turned(states, angles):
    """RoPE written out: pairs (i, i + d/2) turned by the angle of their position."""
    cos, sin = (part[0][:, None] for part in angles)
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin


def attention_row(block, hidden, angles, seen, query, rope=True):
    """[S]: mean over heads of one query's softmax row, for hidden states [S, D] that go into `block`."""
    normed, attention = block.input_layernorm(hidden), block.self_attn
    queries = attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim))
    keys = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim))
    if rope:
        queries, keys = turned(queries, angles), turned(keys, angles)
    total = torch.zeros(len(hidden))
    for head in range(queries.shape[1]):
        scores = keys[:, head * keys.shape[1] // queries.shape[1]] @ queries[query, head] / attention.head_dim**0.5
        total += scores.masked_fill(~seen | (torch.arange(len(hidden)) > query), -math.inf).softmax(-1)
    return total / queries.shape[1]


@torch.no_grad()
def reference(model, embeds, stages, choose=None):
    """(logits [n, V], {layer: positions}) of one row. No token is taken out: layers from a stage on may not look at
    those that were dropped. stages: {layer: (LongTensor of positions that stay, function of the states or None)};
    choose(layer, hidden, angles, seen) makes the entry of a layer whose entry is None."""
    decoder, size = model.model.language_model, embeds.shape[1]
    angles = decoder.rotary_emb(embeds, torch.arange(size)[None])
    seen, hidden, kept = torch.ones(size, dtype=torch.bool), embeds, {}
    for number, block in enumerate(decoder.layers):
        if number in stages:
            rows, change = stages[number] or choose(number, hidden[0], angles, seen)
            kept[number], hidden = rows, hidden if change is None else change(hidden[0])[None]
            seen = torch.zeros(size, dtype=torch.bool).index_fill_(0, rows, True)
        blocked = ~(seen | torch.eye(size, dtype=torch.bool)) | torch.ones(size, size, dtype=torch.bool).triu(1)
        mask = torch.zeros(1, 1, size, size).masked_fill(blocked, torch.finfo(torch.float32).min)
        hidden = block(hidden, attention_mask=mask, position_embeddings=angles)
    return model.lm_head(decoder.norm(hidden))[0, seen], kept


def images_of(ids):
    """LongTensors of positions, one per image of `ids` [S]."""
    return (ids == IMAGE_TOKEN).nonzero().flatten().split(PATCHES)


def staying(ids, parts):
    """Positions that stay: the text and `parts`."""
    return torch.cat([(ids != IMAGE_TOKEN).nonzero().flatten(), *parts]).sort().values


def best(scores, count):
    """Ascending places of the highest scores: sorted in Python, of equals the first."""
    return torch.tensor(sorted(sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:count]))


# What each method should keep, and what it makes of the states: (model, ids [1, S], pixels, count per image) -> stages.


def fastv(model, ids, pixels, keep, rope=True, window=0, layer=2):
    eager = tiny_llava("eager")
    out = eager(input_ids=ids, pixel_values=pixels, output_attentions=True, output_hidden_states=True)
    row = out.attentions[layer - 1][0].mean(0)[-1]
    if not rope:
        block, size = model.model.language_model.layers[layer - 1], ids.shape[1]
        hidden = out.hidden_states[layer - 1][0]
        row = attention_row(block, hidden, None, torch.ones(size, dtype=torch.bool), size - 1, rope=False)
    parts = []
    for places in images_of(ids[0]):
        scores = row[places]
        if not window:
            parts.append(places[best(scores, keep)])
            continue
        cells = {}
        for place in range(PATCHES):
            cells.setdefault((place // SIDE // window, place % SIDE // window), []).append(place)
        chosen, turn = [], 0
        while len(chosen) < keep:  # windows are equal here: one more of each, best windows first
            offered = [sorted(cell, key=lambda i: -float(scores[i]))[turn] for cell in cells.values()]
            chosen += sorted(offered, key=lambda i: -float(scores[i]))[: keep - len(chosen)]
            turn += 1
        parts.append(places[torch.tensor(sorted(chosen))])
    return {layer: (staying(ids[0], parts), None)}


def pyramiddrop(model, ids, pixels, keep):
    counts = {1: min(4 * keep, PATCHES), 2: min(2 * keep, PATCHES), 3: keep}

    def choose(layer, hidden, angles, seen):
        row = attention_row(model.model.language_model.layers[layer], hidden, angles, seen, ids.shape[1] - 1)
        left = [places[seen[places]] for places in images_of(ids[0])]
        return staying(ids[0], [places[best(row[places], counts[layer])] for places in left]), None

    kept = reference(model, embed(model, ids, pixels), dict.fromkeys(counts), choose)[1]
    return {layer: (rows, None) for layer, rows in kept.items()}


def divprune(model, ids, pixels, keep, layer=0):
    out = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True)
    hidden, parts = out.hidden_states[layer][0].double(), []
    for places in images_of(ids[0]):
        tokens = hidden[places]

        def far(i, j, tokens=tokens):
            return 1 - float(tokens[i] @ tokens[j] / tokens[i].norm() / tokens[j].norm())

        chosen = [max(range(PATCHES), key=lambda i: min(far(i, j) for j in range(PATCHES) if j != i))]
        while len(chosen) < keep:
            left = [i for i in range(PATCHES) if i not in chosen]
            chosen.append(max(left, key=lambda i: min(far(i, j) for j in chosen)))
        parts.append(places[torch.tensor(sorted(chosen))])
    return {layer: (staying(ids[0], parts), None)}


def visionzip(model, ids, pixels, keep, contextual=10 / 64, average=False):
    eager = tiny_llava("eager")
    tower = eager.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    number = eager.config.vision_feature_layer + len(tower.attentions)  # the layer that makes the selected states
    layer = eager.model.vision_tower.encoder.layers[number]
    keys = layer.self_attn.k_proj(layer.layer_norm1(tower.hidden_states[number])).unflatten(-1, (2, -1)).mean(2)[:, 1:]
    few, parts, sums = round(keep * contextual), [], {}
    for view, places in enumerate(images_of(ids[0])):
        strong = best(tower.attentions[number][view].mean(0)[0, 1:], keep - few).tolist()
        others = [i for i in range(PATCHES) if i not in strong]
        targets = [others[k * max(1, len(others) // few)] for k in range(few)]
        came = {target: [] for target in targets}
        for i in others:
            if i not in targets:
                cosines = [torch.cosine_similarity(keys[view, i], keys[view, t], dim=0) for t in targets]
                came[targets[int(torch.stack(cosines).argmax())]].append(i)
        parts.append(places[torch.tensor(sorted([*strong, *targets]))])
        for target, moved in came.items():
            sums[int(places[target])] = places[torch.tensor(moved, dtype=torch.long)]

    def change(hidden):
        result = hidden.clone()
        for target, moved in sums.items():
            if len(moved) and average:
                result[target] = hidden[[target, *moved.tolist()]].mean(0)
            elif len(moved):
                result[target] = hidden[target] + hidden[moved].mean(0)
        return result

    return {0: (staying(ids[0], parts), change)}


def flowcut(model, ids, pixels, keep):
    tower = tiny_llava("eager").model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    number, parts = model.config.vision_feature_layer, []
    for view, places in enumerate(images_of(ids[0])):
        states = tower.hidden_states[number][view, 1:].double()
        row = tower.attentions[number][view].mean(0)[0, 1:].double()
        read = sum(row[i] * states[i] for i in range(PATCHES))
        alike = [float(states[i] @ read) for i in range(PATCHES)]
        weighed = [float(row[i] / row.sum()) + alike[i] / sum(alike) for i in range(PATCHES)]
        parts.append(places[best([weighed[i] * float(states[i].abs().sum()) for i in range(PATCHES)], keep)])
    return {0: (staying(ids[0], parts), None)}


def pooling(model, ids, pixels, keep, layer=0):
    bands = round(keep**0.5)
    cells = {}
    for place in range(PATCHES):
        row, column = divmod(place, SIDE)
        band = row * bands // SIDE
        wide = keep * (band + 1) // bands - keep * band // bands
        cells.setdefault((band, column * wide // SIDE), []).append(place)
    assert len(cells) == keep
    parts, means = [], {}
    for places in images_of(ids[0]):
        for members in cells.values():
            middle = [sum(each) / len(members) for each in zip(*(divmod(m, SIDE) for m in members), strict=True)]
            centre = min(members, key=lambda m: (math.dist(divmod(m, SIDE), middle), m))
            means[int(places[centre])] = places[torch.tensor(members)]
        parts.append(torch.tensor(sorted(p for p in means if p in places)))

    def change(hidden):
        result = hidden.clone()
        for centre, members in means.items():
            result[centre] = hidden[members].mean(0)
        return result

    return {layer: (staying(ids[0], parts), change)}


WANTED = {
    "fastv": fastv,
    "fastv-window": lambda *given: fastv(*given, window=3),
    "fastv-unrotated": lambda *given: fastv(*given, rope=False),
    "pyramiddrop": pyramiddrop,
    "divprune": divprune,
    "divprune-inside": lambda *given: divprune(*given, layer=2),
    "visionzip": visionzip,
    "visionzip-average": lambda *given: visionzip(*given, contextual=0.5, average=True),
    "pooling": pooling,
    "flowcut": flowcut,
    "pooling-inside": lambda *given: pooling(*given, layer=2),
}


def stored(cache):
    """Tokens that each layer's cache holds."""
    return [layer.keys.shape[-2] for layer in cache.layers]


@torch.no_grad()
def answer(model, ids, pixels, **options):
    out = model.generate(
        input_ids=ids, pixel_values=pixels, max_new_tokens=STEPS, do_sample=False, output_logits=True,
        return_dict_in_generate=True, suppress_tokens=[IMAGE_TOKEN], **options,
    )  # fmt: skip
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1), out.past_key_values


def check_reference(model, ids, pixels, settings, stages):
    """Which tokens stay, the prefill's logits, and those of every decoded token, with a cache and without."""
    wanted, _ = reference(model, embed(model, ids, pixels), stages)
    with dart.prune(model, settings) as handle:
        out = model(input_ids=ids, pixel_values=pixels, use_cache=True)
        report = handle.last
        tokens, logits, _ = answer(model, ids, pixels)
        again = answer(model, ids, pixels, use_cache=False)[1]
    rows = [stages[layer][0] for layer in sorted(stages)]
    assert report.rows[0].tolist() == rows[-1].tolist()
    torch.testing.assert_close(out.logits[0], wanted, **CLOSE)
    text = int((ids != IMAGE_TOKEN).sum())
    assert [n + text for n in report.visual_per_layer[0]] == stored(out.past_key_values)
    assert report.mean_visual_tokens[0] == sum(report.visual_per_layer[0]) / LAYERS
    whole = torch.cat([ids, tokens[:, :-1]], 1)
    added = torch.arange(ids.shape[1], whole.shape[1])
    stages = {layer: (torch.cat([rows, added]), change) for layer, (rows, change) in stages.items()}
    target, _ = reference(model, embed(model, whole, pixels), stages)
    torch.testing.assert_close(logits[0], target[-STEPS:], **CLOSE)
    torch.testing.assert_close(again, logits, **CLOSE)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("keep", [9, 7])
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_prefill_and_decoding_follow_the_reference(model, name, keep, images):
    ids, pixels = prompt(BEFORE, AFTER, images)
    check_reference(model, ids, pixels, config(name, keep * images), WANTED[name](model, ids, pixels, keep))


def check_batch(model, settings):
    """A padded batch equals its rows alone; a quarter of the tokens stays."""
    one, two = prompt(3, 6, 1, seed=1), prompt(8, 9, 2, seed=2)
    ids = torch.cat([pad(one[0], (two[0].shape[1] - one[0].shape[1], 0)), two[0]])
    with dart.prune(model, settings) as handle:
        alone = [answer(model, *row) for row in (one, two)]
        tokens, logits, cache = answer(model, ids, torch.cat([one[1], two[1]]), attention_mask=(ids != 0).long())
    assert handle.last.visual_after == [PATCHES // 4, PATCHES // 2]
    for row, (single, single_logits, _) in enumerate(alone):
        assert tokens[row].tolist() == single[0].tolist()
        torch.testing.assert_close(logits[row], single_logits[0], **CLOSE)
    widest = [max(counts) for counts in zip(*handle.last.visual_per_layer, strict=True)]
    assert stored(cache)[-1] >= widest[-1] + 18 + STEPS - 1  # the second row: 18 tokens of text


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_padded_batch_equals_its_rows_alone(model, name):
    check_batch(model, config(name, 0.25))


class RowSpy(Strategy):
    """Keeps the first tokens and remembers the last text token's rows of two layers."""

    needs = frozenset({"attention", "next_attention"})
    seen: list[torch.Tensor] = []

    def reduce(self, tokens):
        signals, query = tokens.signals, tokens.text[-1:]
        self.seen[:] = [signals.attention_rows(query)[0], signals.next_attention_rows(query)[0]]
        return Reduction(tokens.visual[: tokens.keep])


def gemma_llava():
    """Gemma 3's decoder: layers with a window and without; queries and keys have norms."""
    text = Gemma3TextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, sliding_window=20, initializer_range=0.2,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    torch.manual_seed(2)
    both = LlavaConfig(vision_config=tiny_llava().config.vision_config, text_config=text, image_token_id=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(both).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_rows_of_layers_with_a_window_see_no_further(attention):
    model, (ids, pixels) = gemma_llava(), prompt(BEFORE, AFTER)
    model.set_attn_implementation("eager")
    weights = model(input_ids=ids, pixel_values=pixels, output_attentions=True).attentions
    model.set_attn_implementation(attention)
    for layer in (1, 2):
        with registered("row-spy", RowSpy), dart.prune(model, config("row-spy", layer=layer)):
            model(input_ids=ids, pixel_values=pixels)
        for row, number in zip(RowSpy.seen, (layer - 1, layer), strict=True):
            torch.testing.assert_close(row, weights[number][0].mean(0)[-1])
            assert (row > 0).sum() == (20 if number == 1 else ids.shape[1])


@torch.no_grad()
def test_signals_of_a_later_stage_are_those_of_the_tokens_left():
    """Every second token is dropped twice. The window of layer 1 counts in the positions that the prompt had."""
    model, (ids, pixels), seen = gemma_llava(), prompt(BEFORE, AFTER), []

    class Halves(Strategy):
        needs = frozenset({"attention", "grid", "tower_features", "embeddings"})

        def stages(self, config, layers):
            return Stage(1, 0.5), Stage(2, 0.25)

        def reduce(self, tokens):
            signals = tokens.signals
            own = [signals.grid, signals.tower_features, signals.embeddings]
            seen.append(([each[tokens.visual] for each in own], signals.attention_rows(tokens.text[-1:])[0]))
            return Reduction(tokens.visual[::2][: tokens.keep])

    with registered("halves", Halves), dart.prune(model, config("halves", 0.25)) as handle:
        model(input_ids=ids, pixel_values=pixels)
    assert handle.last.visual_per_layer == [[PATCHES, PATCHES // 2, PATCHES // 4, PATCHES // 4]]
    assert handle.last.kept[0].tolist() == list(range(BEFORE, BEFORE + PATCHES, 4))
    for first, second in zip(seen[0][0], seen[1][0], strict=True):
        assert torch.equal(first[::2], second) and len(second) == PATCHES // 2
    last = BEFORE + PATCHES + AFTER - 1
    left = [p for p in range(last + 1) if not BEFORE <= p < BEFORE + PATCHES or (p - BEFORE) % 2 == 0]
    assert (seen[1][1] > 0).tolist() == [last - p < 20 for p in left]


@torch.no_grad()
def check_kernels(settings):
    """Any attention kernel gives the same tokens."""
    ids, pixels = prompt(BEFORE, AFTER)
    kept = []
    for attention in ("eager", "sdpa"):
        model = tiny_llava(attention)
        with dart.prune(model, settings) as handle:
            model(input_ids=ids, pixel_values=pixels)
        kept.append(handle.last.kept[0].tolist())
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "visionzip"])
def test_any_attention_kernel_gives_the_same_tokens(name):
    check_kernels(config(name))


@torch.no_grad()
def test_pooling_by_a_whole_factor_is_average_pooling(model):
    ids, pixels = prompt(BEFORE, AFTER)
    features = model.model.get_image_features(pixels, return_dict=True).pooler_output[0]
    pooled = avg_pool2d(features.T.reshape(1, -1, SIDE, SIDE), 2)[0].flatten(1).T
    got = []
    hook = model.model.language_model.layers[0].register_forward_hook(
        lambda module, args, kwargs, output: got.append((args or [kwargs["hidden_states"]])[0]), with_kwargs=True
    )
    with dart.prune(model, config("pooling")):
        model(input_ids=ids, pixel_values=pixels)
    hook.remove()
    torch.testing.assert_close(got[0][0, BEFORE : BEFORE + 9], pooled, **CLOSE)


def test_pooling_of_tiles_whose_tokens_lie_between_each_other():
    """Two tiles of 2 x 4, row by row: cells are those of the tiles, kept tokens ascend."""
    grid = torch.tensor([[0, row, column, tile] for row in range(2) for tile in (1, 0) for column in range(4)])
    plan = GroupPlan(np.arange(16), np.arange(16, 18), 3.0, 3)
    signals = Signals(torch.randn(18, 4), None, {"grid": torch.cat([grid, torch.zeros(2, 4, dtype=torch.long)])})
    tokens = Tokens(torch.arange(16), torch.arange(16, 18), signals, config("pooling", 3, scope="joint"), plan)
    reduction = dart.strategies.get("pooling").reduce(tokens)
    merge, tile = reduction.merge, grid[:, 3]
    assert (reduction.keep.diff() > 0).all()
    sizes = torch.bincount(merge.targets, minlength=3) + 1
    torch.testing.assert_close(merge.own, 1 / sizes)
    torch.testing.assert_close(merge.weights, merge.own[merge.targets])
    assert sorted(sizes.tolist()) == [4, 4, 8]
    assert (tile[merge.sources] == tile[reduction.keep][merge.targets]).all()


def test_pooling_of_a_tile_without_its_padding():
    """Columns that begin at 3, and the newline that ends a row at 24: cells are those of five columns side by side."""
    plan = GroupPlan(np.arange(20), np.arange(20, 22), 5.0, 5)

    def kept(columns: list[int]) -> dart.strategies.Reduction:
        grid = torch.tensor([[0, row, column, 1] for row in range(4) for column in columns] + [[0] * 4] * 2)
        signals = Signals(torch.zeros(22, 4), None, {"grid": grid})
        tokens = Tokens(torch.arange(20), torch.arange(20, 22), signals, config("pooling", 5), plan)
        return dart.strategies.get("pooling").reduce(tokens)

    cut, whole = kept([3, 4, 5, 6, 24]), kept([0, 1, 2, 3, 4])
    assert cut.keep.tolist() == whole.keep.tolist()
    assert cut.merge.targets.tolist() == whole.merge.targets.tolist()


def test_divprune_takes_the_first_of_equals_and_nothing_twice():
    hidden = torch.eye(8).repeat_interleave(2, 0)  # eight pairs of duplicates, all pairs equally far
    kept = dart.select(hidden, hidden[None], torch.ones(16, dtype=torch.bool), config("divprune", 8))
    assert kept.tolist() == list(range(0, 16, 2))
    same = torch.ones(6, 4)
    assert dart.select(same, same[None], torch.ones(6, dtype=torch.bool), config("divprune", 3)).tolist() == [0, 1, 2]


# The vision tower's signals.


@contextmanager
def spying(name, signals, layer=0):
    """What a strategy of that name sees of its visual tokens at `layer`, reduction by reduction; it keeps the first."""
    seen: list[dict[str, torch.Tensor]] = []

    class Spy(Strategy):
        needs = frozenset(signals)

        def stages(self, config, layers):
            return (Stage(layer),)

        def reduce(self, tokens):
            seen.append({signal: getattr(tokens.signals, signal)[tokens.visual] for signal in self.needs})
            return Reduction(tokens.visual[: tokens.keep])

    with registered(name, Spy):
        yield seen


@pytest.fixture
def spied():
    with spying("tower-spy", ("tower_features", "tower_keys", "tower_attention", "grid")) as seen:
        yield seen


def siglip_llava(attention="sdpa", pixels=40):
    """A tower without CLS of (pixels / 4)^2 patches, whose last states are used."""
    text = tiny_llava().config.text_config
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**sizes, image_size=pixels, patch_size=4)
    both = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(both).eval()
    model.set_attn_implementation(attention)
    return model


@torch.no_grad()
def test_signals_of_a_tower_without_cls_come_from_sampled_queries(spied):
    model, eager = siglip_llava(), siglip_llava("eager")
    patches = 100
    ids = torch.cat([torch.arange(2, 7), torch.full((patches,), IMAGE_TOKEN), torch.arange(7, 12)])[None]
    pixels = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with dart.prune(model, config("tower-spy", 20)):
        model(input_ids=ids, pixel_values=pixels)
    tower = eager.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    rows = torch.tensor([k * patches // 64 for k in range(64)])
    torch.testing.assert_close(spied[0]["tower_attention"], tower.attentions[-1][0].mean(0)[rows].mean(0))
    torch.testing.assert_close(spied[0]["tower_features"], tower.hidden_states[-1][0])
    assert spied[0]["tower_keys"].shape == (patches, 2, 8)
    assert spied[0]["grid"].tolist() == [[0, k // 10, k % 10, 0] for k in range(patches)]


@torch.no_grad()
def test_generate_and_forward_see_the_same_tower(model, spied):
    ids, pixels = prompt(BEFORE, AFTER, images=2)
    with dart.prune(model, config("tower-spy", 20)):
        model(input_ids=ids, pixel_values=pixels)
        model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=2, do_sample=False)
    tower = tiny_llava("eager").model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    features, rows = tower.hidden_states[-2][:, 1:], tower.attentions[-2][:, :, 0, 1:].mean(1)
    assert len(spied) == 4
    for number, seen in enumerate(spied):
        torch.testing.assert_close(seen["tower_features"], features[number % 2])
        torch.testing.assert_close(seen["tower_attention"], rows[number % 2])
        assert set(seen["grid"][:, 3].tolist()) == {number % 2}


@torch.no_grad()
def test_beams_share_what_the_tower_saw(model):
    one, two = prompt(3, 6, 1, seed=1), prompt(8, 9, 2, seed=2)
    ids = torch.cat([pad(one[0], (two[0].shape[1] - one[0].shape[1], 0)), two[0]])
    options = {"num_beams": 3, "max_new_tokens": STEPS, "do_sample": False}
    with dart.prune(model, config("visionzip", 0.25)) as handle:
        alone = [
            model.generate(input_ids=row, pixel_values=pixels, **options)[0, -STEPS:] for row, pixels in (one, two)
        ]
        pixels, mask = torch.cat([one[1], two[1]]), (ids != 0).long()
        both = model.generate(input_ids=ids, pixel_values=pixels, attention_mask=mask, **options)
    assert handle.last.visual_after == [9] * 3 + [18] * 3
    assert both[:, -STEPS:].tolist() == [row.tolist() for row in alone]


@torch.no_grad()
def test_this_projects_llava_gives_the_same_signals(spied):
    golden = pytest.importorskip("llava_golden")
    model = golden.loaded()[1]
    ids, pixels = golden.sample("a")
    with dart.prune(model, config("tower-spy", 64)):
        model(ids, images=pixels)
        model.generate(ids, images=pixels, max_new_tokens=2, do_sample=False)
    with dart.prune(model, config("visionzip", 64)) as handle:
        model.generate(ids, images=pixels, max_new_tokens=2, do_sample=False)
    assert handle.last.visual_after == [64]
    features = model.get_vision_tower()(pixels)[0]
    for seen in spied:
        torch.testing.assert_close(seen["tower_features"], features)
        assert seen["grid"][-1].tolist() == [0, 23, 23, 0]


@torch.no_grad()
def test_towers_that_do_not_match_are_refused_by_name(model):
    ids, pixels = prompt(BEFORE, AFTER)
    encoded = model.model.get_image_features(pixels, return_dict=True)
    with dart.prune(model, config("visionzip")), pytest.raises(ValueError, match="'visionzip'.*ran 0 times"):
        model(input_ids=ids, mm_encoder_outputs={"image": encoded})
    several = tiny_llava()
    several.config.vision_feature_layer = [-2, -1]
    with pytest.raises(ValueError, match="'visionzip'.*vision_feature_layer"):
        dart.prune(several, config("visionzip"))


QWEN_ROWS = [
    qwen_prompt(3, ("image", 1, 8, 12), 4, ("video", 2, 4, 6), 5),
    qwen_prompt(6, ("image", 1, 6, 4), 5, seed=1),
]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_grids_of_qwen_follow_frames_rows_and_columns(family):
    model = qwen(family)
    rows = QWEN_ROWS
    seen = []

    def reduce(self, tokens):
        seen.append(tokens.signals.grid[tokens.visual].tolist())
        return Reduction(tokens.visual[: tokens.keep])

    spy = type("GridSpy", (Strategy,), {"needs": frozenset({"grid"}), "reduce": reduce})
    with registered("grid-spy", spy), dart.prune(model, config("grid-spy", 0.5)):
        model(**qwen_batch(*rows))
    assert seen[0] == [[0, r, c, 0] for r in range(4) for c in range(6)]
    assert seen[1] == [[f, r, c, 1] for f in range(2) for r in range(2) for c in range(3)]
    assert seen[2] == [[0, r, c, 0] for r in range(3) for c in range(2)]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "divprune", "pooling", "fastv-window"])
@torch.no_grad()
def test_qwen_batches_and_videos(name):
    """Ragged rows, positions in three dimensions: the batch gives what its rows give alone."""
    model = qwen("qwen2_vl")
    rows = QWEN_ROWS
    with dart.prune(model, config(name, 0.5)) as handle:
        alone = [(model(**row).logits[0, -1], handle.last.visual_after[0]) for row in rows]
        logits = model(**qwen_batch(*rows)).logits[:, -1]
    assert handle.last.visual_after == [count for _, count in alone] == [18, 3]
    torch.testing.assert_close(logits, torch.stack([each for each, _ in alone]), **CLOSE)


def test_grids_of_frames_that_are_spans_of_their_own():
    """Qwen3-VL: a video of two frames with a text in between, an image, and one more video."""
    vision = SimpleNamespace(spatial_merge_size=2)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, video_token_id=VIDEO))
    spans = torch.tensor([[1, 1, 0, 2, 2, 0, 3, 0, 4, 4, 4, 4]])
    ids = torch.where(spans == 3, IMAGE, VIDEO)
    shapes = {"video_grid_thw": torch.tensor([[2, 2, 4], [1, 4, 4]]), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    grid = Family().grid(model, {"input_ids": ids, **shapes}, spans)[0]
    two = [[0, 0, 0], [0, 0, 1]]
    wanted = [*two, *two, [0, 0, 0], *([0, row, column] for row in range(2) for column in range(2))]
    assert grid[spans[0] > 0, :3].tolist() == wanted
    assert grid[:, 3].tolist() == [max(0, number - 1) for number in spans[0].tolist()]
    assert Family().grid(model, {"input_ids": ids, **shapes}, torch.where(spans == 4, 0, spans)[:, :-4]) is not None
    assert Family().grid(model, {"input_ids": ids, **shapes}, spans[:, :-1]) is None


def test_a_grid_that_nobody_knows_is_refused_by_name(model):
    ids, pixels = prompt(BEFORE, AFTER)
    size = model.config.vision_config.image_size
    model.config.vision_config.image_size = size + 4
    try:
        with dart.prune(model, config("pooling")), pytest.raises(ValueError, match="'pooling'.*Llava.*not known"):
            model(input_ids=ids, pixel_values=pixels)
    finally:
        model.config.vision_config.image_size = size


# Smaller images.


def test_downsample_makes_smaller_images_and_leaves_the_decoder_alone(model):
    image = Image.effect_noise((90, 60), 40).convert("RGB")
    ids, pixels = prompt(BEFORE, AFTER)
    plain = model(input_ids=ids, pixel_values=pixels).logits
    with dart.prune(model, config("downsample", 1 / 9)) as handle:
        (small,) = handle.prepare([image])
        assert handle.attached and torch.equal(model(input_ids=ids, pixel_values=pixels).logits, plain)
        assert handle.last.visual_per_layer == [[PATCHES] * LAYERS] and handle.last.mean_visual_tokens == [PATCHES]
        assert handle.last.kept[0].tolist() == list(range(BEFORE, BEFORE + PATCHES))
        with pytest.raises(ValueError, match="pruned already"):
            dart.prune(model, config("uniform"))
    assert small.tobytes() == image.resize((30, 20), Image.Resampling.BICUBIC).tobytes()
    assert not handle.attached
    with dart.prune(model, config("uniform")) as other:
        assert other.prepare([image]) == [image]
    with pytest.raises(ValueError, match="'downsample' needs a fraction"):
        dart.prune(model, config("downsample", 9))


# Budgets.


@pytest.mark.parametrize("scope", ["span", "joint"])
@pytest.mark.parametrize("kind", ["after-layer", "mean-over-layers", "pre-llm"])
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "divprune", "uniform"])
@torch.no_grad()
def test_budgets_of_three_kinds(model, name, kind, scope):
    """Two images of 36 tokens, of which 56 are asked for, in one row; beside it a row with one image and 28."""
    one, two = prompt(8, 9, 2, seed=1), prompt(3, 6, 1, seed=2)
    ids = torch.cat([one[0], pad(two[0], (one[0].shape[1] - two[0].shape[1], 0))])
    settings = config(name, 7 / 9, budget_kind=kind, scope=scope)
    if kind == "pre-llm" and name != "divprune":
        with pytest.raises(ValueError, match=f"'pre-llm'.*{name}"):
            dart.prune(model, settings)
        return
    with dart.prune(model, settings) as handle:
        cache = model(
            input_ids=ids, pixel_values=torch.cat([one[1], two[1]]), attention_mask=(ids != 0).long(), use_cache=True
        ).past_key_values
    counts = torch.tensor(handle.last.visual_per_layer)
    dropped = torch.tensor([[2 * PATCHES], [PATCHES]]) - counts
    assert stored(cache) == (ids.shape[1] - dropped.min(0).values).tolist()
    for row, asked in enumerate((56, 28)):
        if kind == "mean-over-layers":
            assert asked - 3 < handle.last.mean_visual_tokens[row] <= asked
        else:
            assert counts[row, -1] == asked
    if kind == "mean-over-layers" and name in ("fastv", "uniform"):
        assert counts.tolist() == [[72, 72, 40, 40], [36, 36, 20, 20]]
    assert all(a >= b for row in counts.tolist() for a, b in pairwise(row))


def test_means_that_whole_tokens_reach_are_reached():
    """(K N + (L - K) k) / L for every k: no token is lost to rounding."""
    for layers, first, size in ((4, 2, 36), (32, 2, 576), (28, 3, 391)):
        for keep in range(0, size, 7):
            asked = (first * size + (layers - first) * keep) / layers
            mean = config("uniform", asked / size, budget_kind="mean-over-layers")
            assert int(stage_budget(mean, (Stage(first),), 0, size, asked, layers)) == keep


def test_a_mean_that_cannot_be_reached_is_refused_with_the_smallest(model):
    ids, pixels = prompt(BEFORE, AFTER)
    with dart.prune(model, config("fastv", 18, budget_kind="mean-over-layers")) as handle:
        model(input_ids=ids, pixel_values=pixels)
    assert handle.last.visual_after == [0]
    less, refused = config("fastv", 17, budget_kind="mean-over-layers"), "17 of 36.*smallest mean is 18"
    with dart.prune(model, less), pytest.raises(ValueError, match=refused):
        model(input_ids=ids, pixel_values=pixels)
    with pytest.raises(ValueError, match="0.4 of.*smallest mean is 0.5"):
        dart.prune(model, config("fastv", 0.4, budget_kind="mean-over-layers"))
    hidden, mean = torch.randn(9, 4), config("uniform", budget_kind="mean-over-layers")
    with pytest.raises(ValueError, match="needs a model"):
        dart.select(hidden, hidden[None], torch.ones(9, dtype=torch.bool), mean)


@pytest.mark.parametrize("exact, kept", [(True, 17), (None, 17), (False, 4 + 2 * 8)])
@torch.no_grad()
def test_counts_are_exact_unless_darts_rounding_is_asked_for(model, exact, kept):
    ids, pixels = prompt(BEFORE, AFTER)
    for name in METHODS:
        with dart.prune(model, config(name, 17, exact=exact)) as handle:
            model(input_ids=ids, pixel_values=pixels)
        assert handle.last.visual_after == [kept], name


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_budgets_of_nothing_of_all_and_of_one_less(model, name):
    ids, pixels = prompt(BEFORE, AFTER)
    for keep in (0, 1, PATCHES - 1, PATCHES):
        with dart.prune(model, config(name, keep)) as handle:
            logits = model(input_ids=ids, pixel_values=pixels).logits
        assert handle.last.visual_after == [keep] and logits.isfinite().all()
        assert logits.shape[1] == BEFORE + keep + AFTER


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_an_image_without_text_after_it(model, name):
    ids, pixels = prompt(BEFORE, 0)
    with dart.prune(model, config(name)) as handle:
        assert model(input_ids=ids, pixel_values=pixels).logits.isfinite().all()
    assert handle.last.visual_after == [9]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("fastv", {"windows": 2}, "no option windows; known: rope, window"),
        ("fastv", {"window": -1}, "window"),
        ("pyramiddrop", {"fractions": (0.5,)}, "places and fractions"),
        ("pyramiddrop", {"fractions": (0.1, 0.2, 0.3)}, "places and fractions"),
        ("visionzip", {"contextual": 2}, "contextual"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        dart.prune(model, config(name, options=options))


def test_attention_before_the_llm_is_refused_by_name(model):
    with pytest.raises(ValueError, match="'fastv' needs attention.*layer=1"):
        dart.prune(model, config("fastv", layer=0))


# What the engine must catch. Each breaks one rule, on the prompt of 5 tokens, an image and 7 tokens.


def merged(tokens, **changes):
    keep = tokens.visual[: tokens.keep]
    parts = {
        "sources": tokens.visual[tokens.keep :],
        "targets": torch.zeros(len(tokens.visual) - tokens.keep, dtype=torch.long),
        "weights": torch.ones(len(tokens.visual) - tokens.keep),
        "own": torch.ones(tokens.keep),
    }
    return Reduction(keep, Merge(**{**parts, **changes}))


BROKEN = {
    "one too many": lambda t: Reduction(t.visual[: t.keep + 1]),
    "one too few": lambda t: Reduction(t.visual[: t.keep - 1]),
    "twice the same": lambda t: Reduction(t.visual[[0, 0, *range(1, t.keep - 1)]]),
    "unsorted": lambda t: Reduction(t.visual[: t.keep].flip(0)),
    "of another image": lambda t: Reduction(torch.cat([t.visual[1 : t.keep], t.visual[-1:] + 2]).sort().values),
    "text": lambda t: Reduction(torch.cat([t.text[:1], t.visual[1 : t.keep]]).sort().values),
    "a mask": lambda t: Reduction(torch.isin(t.visual, t.visual[: t.keep])),
    "a tensor alone": lambda t: t.visual[: t.keep],
    "a signal not named, rows": lambda t: Reduction(t.signals.attention_heads(t.text[-1:]).argmax(-1).flatten()),
    "a signal not named, question": lambda t: Reduction(t.signals.question[: t.keep]),
    "a signal not named": lambda t: Reduction(t.visual[t.signals.keys.sum((0, 2))[t.visual].topk(t.keep).indices]),
    "adds to nothing": lambda t: merged(t, targets=torch.full((len(t.visual) - t.keep,), t.keep)),
    "adds text": lambda t: merged(t, sources=torch.zeros(len(t.visual) - t.keep, dtype=torch.long)),
    "adds tokens of another image": lambda t: merged(
        t, sources=t.visual[-1] + 2 + torch.arange(len(t.visual) - t.keep)
    ),
    "adds to a place before the first": lambda t: merged(t, targets=torch.full((len(t.visual) - t.keep,), -1)),
    "places that are no integers": lambda t: merged(t, targets=torch.zeros(len(t.visual) - t.keep)),
    "adds what stays": lambda t: merged(t, sources=t.visual[: len(t.visual) - t.keep]),
    "wrong weights": lambda t: merged(t, weights=torch.ones(3)),
    "wrong own weights": lambda t: merged(t, own=torch.ones(3)),
}


@pytest.mark.parametrize("rule", BROKEN)
@torch.no_grad()
def test_a_strategy_that_breaks_the_contract_is_named(model, rule):
    ids, pixels = prompt(BEFORE, AFTER, images=2)
    name = f"broken: {rule}"
    broken = type("Broken", (Strategy,), {"reduce": lambda self, tokens: BROKEN[rule](tokens)})
    refused = pytest.raises((ValueError, TypeError), match=name)
    with registered(name, broken), dart.prune(model, dart.DartConfig(keep=18, strategy=name)), refused:
        model(input_ids=ids, pixel_values=pixels)


@torch.no_grad()
def test_the_same_merge_without_a_mistake_runs(model):
    ids, pixels = prompt(BEFORE, AFTER, images=2)
    kind = type("Merges", (Strategy,), {"reduce": lambda self, tokens: merged(tokens)})
    with registered("merges", kind), dart.prune(model, dart.DartConfig(keep=18, strategy="merges")) as handle:
        model(input_ids=ids, pixel_values=pixels)
    assert handle.last.visual_after == [18]


@pytest.mark.parametrize(
    "stages, message", [((Stage(1, 0.5), Stage(1, 0.2)), "two stages"), ((Stage(1), Stage(2)), "fraction")]
)
def test_stages_that_make_no_sense_are_refused_by_name(model, stages, message):
    odd = type("Odd", (Strategy,), {"stages": lambda self, config, layers: stages})
    with registered("odd stages", odd), pytest.raises(ValueError, match=f"'odd stages'.*{message}"):
        dart.prune(model, dart.DartConfig(strategy="odd stages"))


def test_stages_that_this_decoder_has_no_room_for_are_refused_by_name(model):
    places = {"places": (0.5, 0.55, 1.0)}
    with pytest.raises(ValueError, match="'pyramiddrop'.*decoder of 4.*2, 3, 4"):
        dart.prune(model, config("pyramiddrop", options=places))
    with pytest.raises(ValueError, match="'pyramiddrop'.*decoder of 4.*1, 2, 4"):
        dart.prune(model, config("pyramiddrop", options={"places": (0.25, 0.5, 1.0)}))


def test_a_layer_that_cannot_be_asked_before_it_runs_is_refused_by_name():
    """EXAONE 4 has its norms after the attention."""
    text = Exaone4Config(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=None, layer_types=["full_attention"] * 4,
    )  # fmt: skip
    both = LlavaConfig(vision_config=tiny_llava().config.vision_config, text_config=text, image_token_id=IMAGE_TOKEN)
    with pytest.raises(ValueError, match="'pyramiddrop'.*layer 1.*Exaone4DecoderLayer.*input_layernorm"):
        dart.prune(LlavaForConditionalGeneration(both), config("pyramiddrop"))
