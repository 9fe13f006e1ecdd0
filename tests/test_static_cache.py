"""Static caches with shorter layers, and `torch.compile` of a pruned model's prefill and decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from qwen_golden import FAMILIES, loaded
from qwen_golden import prompt as qwen_prompt
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, StaticCache

import dart
from benchmarks.phases import cache_bytes
from benchmarks.shapes import SHAPES, Workload, build, workload
from dart.engine.compiled import ISOLATED, compile_layers, compile_step

SHAPE = SHAPES["tiny"]
CONFIG = dart.DartConfig(keep=32)
VISUAL, KEPT, STEPS, LENGTH = 256, 36, 3, 350
EXACT = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return build(SHAPE, torch.device("cpu"), torch.float32, request.param)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def prompt(model, after: int, batch: int = 1) -> Workload:
    return workload(replace(SHAPE, text_after=after), model, batch)


def static(model) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=LENGTH)


@torch.no_grad()
def answer(work: Workload, cache, step=None, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits [B, 1 + STEPS, V] of the prompt's last token and of fixed further ones."""
    given = {} if mask is None else {"attention_mask": mask}
    outputs = [work.model(**work.inputs, **given, past_key_values=cache, logits_to_keep=1).logits]
    for k in range(STEPS):
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            given = {"attention_mask": mask}
        ids = torch.full((work.batch, 1), 5 + k)
        outputs.append((step or work.model)(input_ids=ids, **given, past_key_values=cache).logits)
    return torch.cat(outputs, 1)


def slots(cache) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("padded", [False, True])
def test_layers_from_k_on_are_shorter(model, padded):
    work = prompt(model, 35, batch=2)
    mask = None
    if padded:
        mask = torch.ones(2, work.length, dtype=torch.long)
        mask[1, :9] = 0
    cache = static(model)
    with dart.prune(model, CONFIG):
        wanted = answer(work, DynamicCache(), mask=mask)
        torch.testing.assert_close(answer(work, cache, mask=mask), wanted, **EXACT)
    short = LENGTH - VISUAL + KEPT
    assert slots(cache) == [LENGTH, LENGTH, short, short]
    full = static(model)
    answer(work, full, mask=mask)
    assert cache_bytes(cache) / cache_bytes(full) == pytest.approx((LENGTH + short) / (2 * LENGTH))


def test_a_cache_is_used_again(model):
    """After `reset`: for the same prompt, for one that drops fewer tokens, and for words alone."""
    cache = static(model)
    with dart.prune(model, CONFIG):
        work = prompt(model, 35)
        first = answer(work, cache)
        cache.reset()
        torch.testing.assert_close(answer(work, cache), first, **EXACT)
        few = workload(replace(SHAPE, images=2), model, 1)
        wanted = answer(few, DynamicCache())
        cache.reset()
        torch.testing.assert_close(answer(few, cache), wanted, **EXACT)
        assert slots(cache)[2:] == [LENGTH - 128 + KEPT] * 2
        words = Workload(model, {"input_ids": torch.arange(3, 303)[None]}, 1, 300, 0)
        wanted = answer(words, DynamicCache())
        cache.reset()
        torch.testing.assert_close(answer(words, cache), wanted, **EXACT)
        assert slots(cache) == [LENGTH] * 4


def test_a_later_turn_sees_what_single_steps_decoded(model):
    """Steps leave the host's books alone; the next turn of several tokens catches up."""
    work = prompt(model, 35)

    @torch.no_grad()
    def talk(cache) -> torch.Tensor:
        answer(work, cache)
        return model(input_ids=torch.arange(9, 16)[None], past_key_values=cache).logits

    with dart.prune(model, CONFIG):
        torch.testing.assert_close(talk(static(model)), talk(DynamicCache()), **EXACT)


def test_generate_with_a_static_cache(model):
    work = prompt(model, 20)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "disable_compile": True,
    }
    with dart.prune(model, CONFIG):
        plain = model.generate(**work.inputs, **options)
        out = model.generate(**work.inputs, **options, cache_implementation="static", return_dict_in_generate=True)
    assert out.sequences.tolist() == plain.tolist()
    lengths = slots(out.past_key_values)
    assert lengths[0] - lengths[-1] == VISUAL - KEPT


def test_decoding_is_one_graph_for_all_samples(model):
    counter = CompileCounter()
    step = compile_step(model, backend=counter)
    plain = answer(prompt(model, 35), DynamicCache())
    with dart.prune(model, CONFIG):
        for after in (35, 20, 41):
            work = prompt(model, after)
            wanted = answer(work, DynamicCache())
            torch.testing.assert_close(answer(work, static(model), step), wanted, **EXACT)
            assert counter.frame_count == 1
    torch.testing.assert_close(answer(prompt(model, 35), static(model), step), plain, **EXACT)
    for layer in (1, 3):
        with dart.prune(model, dart.DartConfig(keep=32, layer=layer)):
            wanted = answer(prompt(model, 35), DynamicCache())
            torch.testing.assert_close(answer(prompt(model, 35), static(model), step), wanted, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_mrope_is_one_graph(family):
    """Positions go on from those of the unpruned prompt, whatever its length; one graph for all of them."""
    model, counter = loaded(family), CompileCounter()
    step = compile_step(model, backend=counter)

    @torch.no_grad()
    def steps(row, cache, run) -> torch.Tensor:
        outputs = [model(**row, past_key_values=cache).logits[:, -1:]]
        for k in range(STEPS):
            at = (row["input_ids"].shape[1] + k + model.model.rope_deltas).expand(3, -1, -1)
            outputs.append(run(input_ids=torch.tensor([[5 + k]]), past_key_values=cache, position_ids=at).logits)
        return torch.cat(outputs, 1)

    with dart.prune(model, dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2)):
        for words in (9, 14):
            row = qwen_prompt(6, ("image", 1, 12, 8), words, seed=words)
            cache = StaticCache(config=model.config.get_text_config(), max_cache_len=80)
            wanted = steps(row, DynamicCache(), model)
            torch.testing.assert_close(steps(row, cache, step), wanted, atol=1e-4, rtol=0)
            assert counter.frame_count == 1


class HostReads(TorchFunctionMode):
    """Counts what would wait for a device."""

    NAMES = ("item", "__int__", "__bool__", "__index__", "tolist", "cpu", "numpy", "nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in self.NAMES
        return function(*args, **(kwargs or {}))


def test_steps_read_nothing_on_the_host(model):
    """A pruned step on a static cache waits for the device no more often than the plain model's."""
    work = prompt(model, 35)

    def reads() -> int:
        cache = static(model)
        answer(work, cache)
        with HostReads() as mode, torch.no_grad():
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)
        return mode.count

    unpruned = reads()
    with dart.prune(model, CONFIG):
        assert reads() == unpruned


@pytest.mark.skipif(not ISOLATED, reason="this torch cannot isolate recompilations")
def test_the_prefills_layers_are_compiled_once(model):
    works = [prompt(model, after) for after in (35, 20, 41)]
    with dart.prune(model, CONFIG):
        wanted = [answer(work, DynamicCache())[:, :1] for work in works]
        counter = CompileCounter()
        with compile_layers(model, backend=counter), torch.no_grad():
            for work, logits in zip(works, wanted, strict=True):
                got = model(**work.inputs, past_key_values=DynamicCache(), logits_to_keep=1).logits
                torch.testing.assert_close(got, logits, **EXACT)
                assert counter.frame_count == SHAPE.layers
    assert all("forward" not in vars(layer) for layer in model.model.language_model.layers)


def test_attention_behind_k_needs_no_mask():
    """The prefill's attention stays on sdpa's own causal path: a mask would be of the size of its scores."""
    model = build(SHAPE, torch.device("cpu"), torch.float32, "sdpa")
    seen = []
    attention = model.model.language_model.layers
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
        for layer in attention
    ]
    with dart.prune(model, CONFIG):
        answer(prompt(model, 35, batch=2), DynamicCache())
    for hook in hooks:
        hook.remove()
    assert len(seen) == SHAPE.layers * (1 + STEPS)
    assert all(kwargs["attention_mask"] is None for kwargs in seen)
    behind = [kwargs["position_embeddings"][0] for kwargs in seen[2 : SHAPE.layers]]
    assert all(each is behind[0] for each in behind), "gathered once, not in every layer"
