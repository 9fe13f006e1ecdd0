"""Uses that went wrong once: threads, copies, training, quantized caches, drafts, chunks, compiled models."""

from __future__ import annotations

import copy
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import IMAGE_TOKEN, PATCHES, prompt, tiny_llava
from transformers import DynamicCache, QuantizedCache

import dart
from dart.engine.forward import CURRENT
from dart.engine.losses import labels_of_rows

KEEP = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2)
OPTIONS = {"do_sample": False, "max_new_tokens": 6, "suppress_tokens": [IMAGE_TOKEN]}
EXACT = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_threads_do_not_see_each_other(model, layer):
    """Eight threads, fifty forwards each, prompts of different lengths: every one as if it were alone."""
    rows = [prompt(3 + k, 4 + k % 3, 1 + k % 2, seed=k) for k in range(8)]
    with dart.prune(model, dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)):
        wanted = [model(input_ids=ids, pixel_values=pixels).logits for ids, pixels in rows]
        barrier, wrong = threading.Barrier(len(rows)), []

        @torch.no_grad()
        def ask(number: int) -> None:
            ids, pixels = rows[number]
            barrier.wait()
            for _ in range(50):
                logits = model(input_ids=ids, pixel_values=pixels).logits
                if logits.shape != wanted[number].shape or (logits - wanted[number]).abs().max() > 1e-5:
                    wrong.append(number)

        with ThreadPoolExecutor(len(rows)) as pool:
            list(pool.map(ask, range(len(rows))))
    assert not wrong and CURRENT.get() is None


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_endpoint_under_eight_clients(model, kind):
    """FastAPI runs a `def` in a pool of threads and an `async def` in its loop: every client gets its own answer."""
    fastapi = pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    rows = [prompt(3 + k, 4 + k % 3, 1 + k % 2, seed=k) for k in range(8)]

    def answer(number: int) -> list[int]:
        ids, pixels = rows[number]
        return model.generate(input_ids=ids, pixel_values=pixels, **OPTIONS)[0].tolist()

    async def answer_async(number: int) -> list[int]:
        return answer(number)

    app = fastapi.FastAPI()
    app.get("/ask")(answer if kind == "def" else answer_async)
    with dart.prune(model, KEEP), TestClient(app) as client:
        wanted = [answer(number) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda n: client.get("/ask", params={"number": n % 8}).json(), range(32)))
    assert got == wanted * 4


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@torch.no_grad()
def test_a_copied_cache_carries_its_layout(model, layer, how):
    """transformers' recipe for a shared prefix: fill a cache once, copy it for every question."""
    ids, pixels = prompt(5, 7)
    questions = [torch.randint(2, 90, (1, 4), generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    with dart.prune(model, dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)):

        def asked(cache, question):
            return model(input_ids=question, past_key_values=cache).logits

        def filled():
            cache = DynamicCache(config=model.config.get_text_config())
            model(input_ids=ids, pixel_values=pixels, past_key_values=cache)
            return cache

        wanted = [asked(filled(), question) for question in questions]
        prefix = filled()
        for question, logits in zip(questions, wanted, strict=True):
            if how == "deepcopy":
                cache = copy.deepcopy(prefix)
            else:
                stored = io.BytesIO()
                torch.save(prefix, stored)
                stored.seek(0)
                cache = torch.load(stored, weights_only=False)
            torch.testing.assert_close(asked(cache, question), logits, **EXACT)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_rows_of_a_cache_are_picked_repeated_and_cropped(model, layer):
    one, two = prompt(3, 6, seed=1), prompt(8, 9, seed=2)
    ids = torch.cat([torch.nn.functional.pad(one[0], (8, 0)), two[0]])
    mask = (ids != 0).long()
    step = torch.full((2, 1), 7)

    def filled(cache=None):
        cache = DynamicCache(config=model.config.get_text_config())
        model(input_ids=ids, pixel_values=torch.cat([one[1], two[1]]), attention_mask=mask, past_key_values=cache)
        return cache

    def logits(cache, mask, count=1):
        mask = torch.cat([mask, torch.ones(len(mask), count, dtype=torch.long)], 1)
        tokens = torch.full((len(mask), count), 7)
        return model(input_ids=tokens, attention_mask=mask, past_key_values=cache).logits

    with dart.prune(model, dart.DartConfig(keep=0.5, image_pivots=2, text_pivots=2, layer=layer)):
        wanted = logits(filled(), mask)
        swapped = filled()
        swapped.reorder_cache(torch.tensor([1, 0]))
        torch.testing.assert_close(logits(swapped, mask.flip(0)), wanted.flip(0), **EXACT)
        second = filled()
        second.batch_select_indices(torch.tensor([1]))
        torch.testing.assert_close(logits(second, mask[1:]), wanted[1:], **EXACT)
        twice = filled()
        twice.batch_repeat_interleave(2)
        torch.testing.assert_close(logits(twice, mask.repeat_interleave(2, 0)), wanted.repeat_interleave(2, 0), **EXACT)
        cropped = filled()
        logits(cropped, mask, count=3)
        cropped.crop(-3)
        torch.testing.assert_close(logits(cropped, mask), wanted, **EXACT)
        into_prompt = filled()
        into_prompt.crop(-2)
        shorter = torch.cat([mask[:, :-2], torch.ones_like(step)], 1)
        again = filled()
        again.crop(-1)
        again.crop(-1)
        torch.testing.assert_close(
            model(input_ids=step, attention_mask=shorter, past_key_values=into_prompt).logits,
            model(input_ids=step, attention_mask=shorter, past_key_values=again).logits,
            **EXACT,
        )


@torch.no_grad()
def test_a_quantized_cache_decodes_like_a_plain_one(model):
    pytest.importorskip("hqq")
    ids, pixels = prompt(5, 7)
    config = model.config.get_text_config()
    quantized = QuantizedCache(backend="hqq", config=config, nbits=4, axis_key=1, axis_value=1, q_group_size=8)
    with dart.prune(model, KEEP) as handle:
        first = model(input_ids=ids, pixel_values=pixels, past_key_values=quantized).logits
        kept = handle.last.kept[0].tolist()
        plain = model(input_ids=ids, pixel_values=pixels).logits
        step = model(input_ids=ids[:, -1:], past_key_values=quantized).logits
    torch.testing.assert_close(first, plain, **EXACT)
    assert handle.last.kept[0].tolist() == kept
    assert step.isfinite().all() and quantized.get_seq_length(2) == ids.shape[1] - PATCHES + 18 + 1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_gradient_checkpointing_gives_the_same_gradients(layer, reentrant):
    ids, pixels = prompt(5, 7)
    labels = torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - 6, -100, ids)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_llava().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with dart.prune(model, dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)) as handle:
            model(input_ids=ids, pixel_values=pixels, labels=labels).loss.backward()
        assert handle.last.visual_after == [18]
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **EXACT)


def test_the_loss_is_that_of_the_kept_tokens(model):
    ids, pixels = prompt(5, 9)
    labels = torch.where(ids == IMAGE_TOKEN, -100, ids)
    with dart.prune(model, KEEP) as handle:
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        logits = model(input_ids=ids, pixel_values=pixels).logits
    kept = labels[0][torch.cat([(ids[0] != IMAGE_TOKEN).nonzero().flatten(), handle.last.kept[0]]).sort().values]
    wanted = torch.nn.functional.cross_entropy(logits[0, :-1], kept[1:], ignore_index=-100)
    torch.testing.assert_close(loss, wanted, **EXACT)
    text = ids[:, :5]
    with dart.prune(model, KEEP):
        pruned = model(input_ids=text, labels=text).loss
    assert torch.equal(pruned, model(input_ids=text, labels=text).loss)


def test_labels_of_rows():
    labels = torch.tensor([[5, 6, 7, 8]])
    assert labels_of_rows(labels, torch.tensor([[-1, -1, 0, 2, 3]])).tolist() == [[-100, -100, -100, 7, 8]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: {"labels": torch.cat([ids, ids], 1)}, r"labels must be \[1, 48\]"),
        (lambda ids: {"labels": ids[:, :-3]}, r"got \[1, 45\]"),
        (lambda ids: {"labels": torch.cat([ids, ids])}, r"got \[2, 48\]"),
        (lambda ids: {"labels": ids, "shift_labels": ids}, "shift_labels"),
        (lambda ids: {"labels": ids, "ignore_index": 0}, "ignore_index"),
    ],
)
def test_labels_that_no_loss_can_be_taken_from(model, change, message):
    ids, pixels = prompt(5, 7)
    with dart.prune(model, KEEP), pytest.raises(ValueError, match=message):
        model(input_ids=ids, pixel_values=pixels, **change(ids))


@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_its_rows(model):
    """The row with a picture is shorter after the pruning: the empty slots in front of it foretell nothing."""
    ids, pixels = prompt(5, 9)
    words = prompt(12, 8)[0]
    words = words[words != IMAGE_TOKEN][None]
    padding = torch.zeros(1, ids.shape[1] - words.shape[1], dtype=torch.long)
    batch = torch.cat([ids, torch.cat([words, padding], 1)])
    seen = (batch != 0).long()
    with dart.prune(model, KEEP) as handle:
        alone = model(input_ids=ids, pixel_values=pixels, labels=ids).loss
        count = handle.last.tokens_after - 1
        loss = model(input_ids=batch, pixel_values=pixels, attention_mask=seen, labels=batch.where(seen > 0, -100)).loss
        text = model(input_ids=words, labels=words).loss
    others = words.shape[1] - 1
    torch.testing.assert_close(loss, (count * alone + others * text) / (count + others), **EXACT)


def test_a_peft_model_is_pruned_and_trained():
    peft = pytest.importorskip("peft")
    ids, pixels = prompt(5, 7)
    plain = tiny_llava()
    with dart.prune(plain, KEEP):
        wanted = plain(input_ids=ids, pixel_values=pixels, labels=ids)
        answer = plain.generate(input_ids=ids, pixel_values=pixels, **OPTIONS)
    model = peft.get_peft_model(tiny_llava(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    with dart.prune(model, KEEP) as handle:
        assert dart.handle_of(model) is handle
        got = model(input_ids=ids, pixel_values=pixels, labels=ids)
        torch.testing.assert_close(got.logits, wanted.logits, **EXACT)
        torch.testing.assert_close(got.loss, wanted.loss, **EXACT)
        got.loss.backward()
        assert torch.equal(model.generate(input_ids=ids, pixel_values=pixels, **OPTIONS), answer)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n)
    assert dart.handle_of(model) is None


@torch.no_grad()
def test_copies_of_a_pruned_model_are_pruned_and_can_be_freed():
    model, (ids, pixels) = tiny_llava(), prompt(5, 7)
    handle = dart.prune(model, KEEP)
    stored = io.BytesIO()
    torch.save(model, stored)  # before its first forward: transformers' own hooks on its outputs cannot be pickled
    stored.seek(0)
    plain = tiny_llava()(input_ids=ids, pixel_values=pixels).logits
    pruned = model(input_ids=ids, pixel_values=pixels).logits
    for other in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        assert torch.equal(other(input_ids=ids, pixel_values=pixels).logits, pruned)
        own = dart.handle_of(other)
        assert own is not None and own is not handle and own.model is other
        own.remove()
        assert torch.equal(other(input_ids=ids, pixel_values=pixels).logits, plain)
        assert dart.handle_of(other) is None
    assert dart.handle_of(model) is handle
    assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, pruned)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_drafts_are_no_part_of_the_prompt(model, layer):
    """Assisted decoding gives the tokens of greedy decoding, whatever the assistant drafts."""
    config = dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=4, layer=layer)
    assistant = tiny_llava(seed=3)
    for seed in range(4):
        ids, pixels = prompt(5, 3, seed=seed)
        with dart.prune(model, config) as handle:
            greedy = model.generate(input_ids=ids, pixel_values=pixels, **OPTIONS)
            kept = handle.last.kept[0].tolist()
            for drafts in ({"assistant_model": assistant}, {"assistant_model": model}, {"prompt_lookup_num_tokens": 3}):
                answer = model.generate(input_ids=ids, pixel_values=pixels, **OPTIONS, **drafts)
                assert answer.tolist() == greedy.tolist(), drafts
                assert handle.last.kept[0].tolist() == kept


@torch.no_grad()
def test_a_prompt_in_chunks_is_refused_and_words_are_not(model):
    ids, pixels = prompt(5, 7)
    with dart.prune(model, KEEP):
        with pytest.raises(ValueError, match="chunk"):
            model.generate(input_ids=ids, pixel_values=pixels, prefill_chunk_size=16, **OPTIONS)
        words = ids[:, :5]
        assert model.generate(input_ids=words, prefill_chunk_size=2, **OPTIONS).shape[1] == 11
    assert CURRENT.get() is None


@pytest.mark.parametrize("how", ["compile", "forward"])
@torch.no_grad()
def test_a_model_that_was_compiled_before_is_pruned(how, caplog):
    torch.compiler.reset()
    model, (ids, pixels) = tiny_llava(), prompt(5, 7)
    if how == "compile":
        model.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    plain = model(input_ids=ids, pixel_values=pixels).logits
    with dart.prune(model, KEEP) as handle:
        pruned = model(input_ids=ids, pixel_values=pixels).logits
    assert pruned.shape[1] == handle.last.tokens_after < ids.shape[1]
    torch.testing.assert_close(model(input_ids=ids, pixel_values=pixels).logits, plain, **EXACT)
    with dart.prune(tiny_llava(), KEEP) as handle:
        eager = handle.model(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(pruned, eager, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_budget_below_one_token_without_text_pivots(dtype):
    """B9: nothing to take for anybody."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=generator).to(dtype)
    keys = torch.randn(2, 20, 4, generator=generator).to(dtype)
    mask = torch.arange(20) < 15
    config = dart.DartConfig(keep=0.01, exact=True, text_pivots=0, pivot_order="original")
    assert dart.select(hidden, keys, mask, config).numel() == 0


@torch.no_grad()
def test_embeddings_are_not_normalised_at_layer_0(model):
    """A7: there the strategy sees the embeddings themselves."""
    ids, pixels = prompt(5, 7)
    seen = []
    handle = dart.prune(model, dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=0))
    watch = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        model(input_ids=ids, pixel_values=pixels)
    finally:
        watch.remove()
        handle.remove()
    wanted = dart.select(seen[0][0], seen[0].transpose(0, 1)[None, :, 0], ids[0] == IMAGE_TOKEN, KEEP)
    assert handle.last.kept[0].tolist() == wanted.tolist()
