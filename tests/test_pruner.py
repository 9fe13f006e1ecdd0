"""`dart.prune` on a random LLaVA of transformers, against a decoder loop written out here."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from conftest import IMAGE_TOKEN, PATCHES, prompt, tiny_llava
from transformers import DynamicCache, StaticCache

import dart

KEEP = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2)
STEPS = 5


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def embed(model, ids, pixels):
    embeds = model.get_input_embeddings()(ids)
    if pixels is not None:
        features = torch.cat(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))
        embeds = embeds.masked_scatter((ids == model.config.image_token_id)[..., None], features)
    return embeds


def causal(positions):
    blocked = positions[None, :] > positions[:, None]
    return torch.zeros(blocked.shape).masked_fill(blocked, torch.finfo(torch.float32).min)[None, None]


@torch.no_grad()
def reference(model, embeds, keep, layer):
    """Logits [n, V] of one row: `layer` layers see all positions, the others only `keep`, and no cache is involved."""
    decoder = model.model.language_model
    rope = decoder.rotary_emb(embeds, torch.arange(embeds.shape[1])[None])
    hidden, mask = embeds, causal(torch.arange(embeds.shape[1]))
    for number, block in enumerate(decoder.layers):
        if number == layer:
            hidden, mask = hidden[:, keep], causal(keep)
            rope = tuple(part[:, keep] for part in rope)
        hidden = block(hidden, attention_mask=mask, position_embeddings=rope)
    return model.lm_head(decoder.norm(hidden))[0]


def rows_left(ids, kept, model):
    """Positions of row `ids` [S] that stay: all text and the kept visual tokens."""
    text = (ids != model.config.image_token_id).nonzero().flatten()
    return torch.cat([text, kept]).sort().values


@torch.no_grad()
def answer(model, ids, pixels=None, **options):
    """(new tokens [B, STEPS], their logits [B, STEPS, V]) of greedy decoding."""
    out = model.generate(
        input_ids=ids,
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=[IMAGE_TOKEN],
        **({} if pixels is None else {"pixel_values": pixels}),
        **options,
    )
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1)


def expected(model, ids, pixels, tokens, kept, layer):
    """Reference logits [len(tokens), V] at which `tokens` were chosen."""
    whole = torch.cat([ids[0], tokens[:-1]])[None]
    rows = rows_left(whole[0], kept, model)
    return reference(model, embed(model, whole, pixels), rows, layer)[-len(tokens) :]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_prefill_and_decoding_follow_the_written_out_decoder(attention, layer):
    model = tiny_llava(attention)
    ids, pixels = prompt(5, 7)
    config = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)
    with dart.prune(model, config) as handle:
        tokens, logits = answer(model, ids, pixels)
        report = handle.last
    assert report.visual_before == [PATCHES] and report.visual_after == [18]
    assert (report.tokens_before, report.tokens_after) == (5 + PATCHES + 7, 5 + 18 + 7)
    assert report.mean_visual_tokens == [(layer * PATCHES + (4 - layer) * 18) / 4]
    target = expected(model, ids, pixels, tokens[0], report.kept[0], layer)
    torch.testing.assert_close(logits[0], target, atol=1e-4, rtol=0)
    off = answer(model, ids, pixels)[1]
    assert (off - logits).abs().max() > 1e-2


def test_selection_is_made_from_final_norm_states_and_rotated_keys(model):
    ids, pixels = prompt(5, 7)
    out = model.model.language_model(
        inputs_embeds=embed(model, ids, pixels), output_hidden_states=True, past_key_values=DynamicCache()
    )
    hidden = model.model.language_model.norm(out.hidden_states[2])[0]
    keys = out.past_key_values.layers[1].keys[0]
    wanted = dart.select(hidden, keys, ids[0] == model.config.image_token_id, KEEP)
    with dart.prune(model, KEEP) as handle:
        model(input_ids=ids, pixel_values=pixels)
    assert handle.last.kept[0].tolist() == wanted.tolist()


def test_cache_lengths_and_logit_rows(model):
    ids, pixels = prompt(5, 7)
    with dart.prune(model, KEEP):
        out = model(input_ids=ids, pixel_values=pixels, use_cache=True)
    assert [out.past_key_values.get_seq_length(k) for k in range(4)] == [48, 48, 30, 30]
    assert out.logits.shape[1] == 30


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("images", [(1, 1), (1, 2)])
def test_left_padded_batch_equals_one_by_one(attention, layer, images):
    model = tiny_llava(attention)
    config = dart.DartConfig(keep=0.5, image_pivots=2, text_pivots=2, layer=layer)
    one, two = prompt(3, 6, images[0], seed=1), prompt(8, 9, images[1], seed=2)
    width = max(one[0].shape[1], two[0].shape[1])
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(row, (width - row.shape[1], 0)) for row in (one[0], two[0])])
    with dart.prune(model, config):
        alone = [answer(model, *row) for row in (one, two)]
        tokens, logits = answer(model, ids, torch.cat([one[1], two[1]]), attention_mask=(ids != 0).long())
    for row, (single_tokens, single_logits) in enumerate(alone):
        torch.testing.assert_close(logits[row], single_logits[0], atol=1e-4, rtol=0)
        assert tokens[row].tolist() == single_tokens[0].tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_of_one_length_that_keep_different_numbers(attention):
    """No padding in the input, so no mask: a row with a picture beside a row of text alone."""
    model = tiny_llava(attention)
    ids, pixels = prompt(5, 7)
    text = torch.randint(2, 90, ids.shape, generator=torch.Generator().manual_seed(3))
    with dart.prune(model, KEEP) as handle:
        alone = [answer(model, ids, pixels), answer(model, text, None)]
        tokens, logits = answer(model, torch.cat([ids, text]), pixels)
    assert handle.last.visual_after == [18, 0]
    for row in (0, 1):
        torch.testing.assert_close(logits[row], alone[row][1][0], atol=1e-4, rtol=0)


def test_text_only_prompt_is_untouched(model):
    text = torch.randint(2, 90, (1, 20))
    plain = model(input_ids=text).logits
    with dart.prune(model, KEEP) as handle:
        assert torch.equal(model(input_ids=text).logits, plain)
    assert handle.last is None


@pytest.mark.parametrize("layer", [0, 2])
def test_without_a_cache(model, layer):
    ids, pixels = prompt(5, 7)
    with dart.prune(model, dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)):
        cached = model(input_ids=ids, pixel_values=pixels, use_cache=True).logits
        uncached = model(input_ids=ids, pixel_values=pixels, use_cache=False)
    assert uncached.past_key_values is None
    torch.testing.assert_close(uncached.logits, cached, atol=1e-5, rtol=0)


def test_beam_search_of_a_batch_equals_one_by_one(model):
    options = {"max_new_tokens": STEPS, "num_beams": 3, "do_sample": False}
    one, two = prompt(3, 6, seed=1), prompt(8, 9, seed=2)
    ids = torch.cat([torch.nn.functional.pad(one[0], (8, 0)), two[0]])
    with dart.prune(model, KEEP):
        alone = [model.generate(input_ids=r[0], pixel_values=r[1], **options)[0, -STEPS:] for r in (one, two)]
        both = model.generate(
            input_ids=ids, pixel_values=torch.cat([one[1], two[1]]), attention_mask=(ids != 0).long(), **options
        )
    assert both[:, -STEPS:].tolist() == [row.tolist() for row in alone]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_static_cache_gives_the_same_logits(attention, layer):
    model = tiny_llava(attention)
    ids, pixels = prompt(5, 7)
    config = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)
    with dart.prune(model, config):
        dynamic = answer(model, ids, pixels)
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=80)
        static = answer(model, ids, pixels, past_key_values=cache, disable_compile=True)
    torch.testing.assert_close(static[1], dynamic[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("second_image", [False, True])
def test_a_later_turn_on_the_same_cache(attention, second_image):
    model = tiny_llava(attention)
    ids, pixels = prompt(5, 7, seed=1)
    more, more_pixels = prompt(4, 6, seed=2)
    if not second_image:
        more, more_pixels = more[:, :4], None
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad(), dart.prune(model, KEEP) as handle:
        model(input_ids=ids, pixel_values=pixels, past_key_values=cache)
        kept = handle.last.kept[0]
        logits = model(input_ids=more, pixel_values=more_pixels, past_key_values=cache).logits[0]
        if second_image:
            assert handle.last.visual_before == [PATCHES]
            kept = torch.cat([kept, handle.last.kept[0] + ids.shape[1]])
    whole = torch.cat([ids, more], 1)
    pictures = torch.cat([pixels, more_pixels]) if second_image else pixels
    target = reference(model, embed(model, whole, pictures), rows_left(whole[0], kept, model), KEEP.layer)
    torch.testing.assert_close(logits, target[-len(logits) :], atol=1e-4, rtol=0)
    assert cache.get_seq_length(0) == whole.shape[1] and cache.get_seq_length(2) == len(target)


def hooks_of(model):
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("layer", [0, 2])
def test_nothing_is_left_after_remove_or_an_exception(layer):
    model = tiny_llava()
    ids, pixels = prompt(5, 7)
    before = model(input_ids=ids, pixel_values=pixels).logits
    hooks, attributes = hooks_of(model), [sorted(vars(module)) for module in model.modules()]
    settings = copy.deepcopy(model.config.to_dict())
    config = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle of a forward")

    with pytest.raises(RuntimeError, match="in the middle"), dart.prune(model, config):
        assert hooks_of(model) > hooks
        broken = model.model.language_model.layers[3].register_forward_pre_hook(fail)
        try:
            model(input_ids=ids, pixel_values=pixels)
        finally:
            broken.remove()
    assert hooks_of(model) == hooks
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert model.config.to_dict() == settings
    assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, before)


def test_a_second_handle_is_refused_until_the_first_is_removed(model):
    first = dart.prune(model, KEEP)
    with pytest.raises(ValueError, match="remove the first"):
        dart.prune(model, KEEP)
    first.remove()
    first.remove()
    dart.prune(model, KEEP).remove()


def test_a_layer_beyond_the_last_prunes_nothing_and_says_so(model, caplog):
    ids, pixels = prompt(5, 7)
    before = model(input_ids=ids, pixel_values=pixels).logits
    with caplog.at_level(logging.WARNING), dart.prune(model, dart.DartConfig(layer=4)) as handle:
        assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, before)
    assert handle.last is None and "nothing will be pruned" in caplog.text


def test_unknown_models_and_configs_are_named():
    with pytest.raises(TypeError, match="Linear.*llava"):
        dart.prune(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="DartConfig"):
        dart.prune(tiny_llava(), {"keep": 3})


def test_gradients_flow_through_a_pruned_prefill():
    model = tiny_llava()
    ids, pixels = prompt(5, 7)
    with dart.prune(model, KEEP):
        model(input_ids=ids, pixel_values=pixels).logits.sum().backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_hidden_states_and_attentions_have_both_lengths():
    model = tiny_llava("eager")
    ids, pixels = prompt(5, 7)
    with dart.prune(model, KEEP):
        out = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    assert [state.shape[1] for state in out.hidden_states] == [48, 48, 48, 30, 30]
    assert [weights.shape[-1] for weights in out.attentions] == [48, 48, 30, 30]


def test_a_quota_for_each_picture(model):
    ids, pixels = prompt(4, 6, images=2)
    with dart.prune(model, KEEP) as handle:
        model(input_ids=ids, pixel_values=pixels)
    first = (handle.last.kept[0] < 4 + PATCHES).sum()
    assert (int(first), handle.last.visual_after) == (10, [20])  # each picture: 8 of 16, as 2 + 4 * 2


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_generate_on_a_reused_cache(model, layer):
    """The second turn of `generate` equals decoding without a cache over what both turns left."""
    ids, pixels = prompt(5, 6)
    more = torch.randint(2, 90, (1, 7), generator=torch.Generator().manual_seed(8))
    config = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)
    options = {"do_sample": False, "return_dict_in_generate": True, "max_new_tokens": STEPS}
    with dart.prune(model, config) as handle:
        first = model.generate(ids, pixel_values=pixels, **options)
        keep = rows_left(ids[0], handle.last.kept[0], model)
        talk = torch.cat([first.sequences, more], 1)
        second = model.generate(talk, past_key_values=first.past_key_values, output_logits=True, **options)
    embeds = embed(model, second.sequences, pixels)
    keep = torch.cat([keep, torch.arange(ids.shape[1], embeds.shape[1])])
    logits = reference(model, embeds, keep, layer)
    wanted = logits[-STEPS - 1 : -1]
    torch.testing.assert_close(torch.cat(second.logits), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_without_a_cache_equals_generate_with_one(attention, layer, beams):
    """One selection, for the prompt, whether its keys are kept or computed anew at every step."""
    model = tiny_llava(attention)
    one, two = prompt(3, 6, seed=1), prompt(8, 9, seed=2)
    ids = torch.cat([torch.nn.functional.pad(one[0], (8, 0)), two[0]])
    inputs = {"pixel_values": torch.cat([one[1], two[1]]), "attention_mask": (ids != 0).long(), "num_beams": beams}
    with dart.prune(model, dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)) as handle:
        tokens = [answer(model, ids, use_cache=on, **inputs)[0].tolist() for on in (True, False)]
        assert handle.last.tokens_before == ids.shape[1] + STEPS - 1
        assert tokens[0] == tokens[1]
        _, pixels = two
        single, logits = answer(model, two[0], pixels, use_cache=False)
        kept = handle.last.kept[0]
        torch.testing.assert_close(
            logits[0], expected(model, two[0], pixels, single[0], kept, layer), atol=1e-4, rtol=0
        )


@torch.no_grad()
def test_another_prompt_without_a_cache_is_selected_anew(model):
    (ids, pixels), (longer, _) = prompt(5, 7, seed=1), prompt(6, 7, seed=2)
    with dart.prune(model, KEEP) as handle:
        model(input_ids=longer, pixel_values=pixels)
        fresh = handle.last.kept[0]
        model(input_ids=ids, pixel_values=pixels, use_cache=False)
        model(input_ids=longer, pixel_values=pixels, use_cache=False)
    assert handle.last.kept[0].tolist() == fresh.tolist()


def test_embeddings_without_ids_are_refused_and_words_are_not(model):
    """Nobody could tell which tokens are visual: all of them stayed."""
    ids, pixels = prompt(5, 7)
    embeds, words = (model.get_input_embeddings()(each).detach() for each in (ids, ids[:, :5]))
    with dart.prune(model, KEEP):
        for call in (model, model.generate):
            with pytest.raises(ValueError, match="inputs_embeds came with images"):
                call(inputs_embeds=embeds, pixel_values=pixels)
        assert model(inputs_embeds=words).logits.shape[1] == 5
        assert model(input_ids=ids, pixel_values=pixels).logits.shape[1] < ids.shape[1]


def test_tokens_put_in_front_of_the_prompt_are_refused():
    """Prompt tuning: the visual tokens were looked for where the ids have them, three places too early."""
    peft = pytest.importorskip("peft")
    sizes = {"num_virtual_tokens": 3, "token_dim": 32, "num_layers": 4, "num_attention_heads": 4}
    tuned = peft.get_peft_model(tiny_llava(), peft.PromptTuningConfig(task_type="CAUSAL_LM", **sizes))
    ids, pixels = prompt(5, 7)
    with dart.prune(tuned, KEEP), pytest.raises(ValueError, match="51 tokens for 48 input ids"):
        tuned(input_ids=ids, pixel_values=pixels)


def test_logits_of_positions_are_refused(model):
    ids, pixels = prompt(5, 7)
    with dart.prune(model, KEEP):
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(input_ids=ids, pixel_values=pixels, logits_to_keep=torch.tensor([0, 20]))
        assert model(input_ids=ids[:, :5], logits_to_keep=torch.tensor([0, 2])).logits.shape[1] == 2


@pytest.mark.parametrize("masked", [False, True])
def test_samples_packed_into_a_row_are_refused(model, masked):
    """They shared one budget and the last one's text."""
    (ids, pixels), (more, others) = prompt(5, 7), prompt(4, 6, seed=1)
    sizes = torch.tensor([ids.shape[1], more.shape[1]])
    given = {"position_ids": torch.cat([torch.arange(size) for size in sizes])[None]}
    if masked:
        sample = torch.arange(2).repeat_interleave(sizes)
        given["attention_mask"] = ((sample[:, None] == sample) & torch.ones(sizes.sum(), sizes.sum()).tril().bool())[
            None, None
        ]
    with dart.prune(model, KEEP), pytest.raises(ValueError, match="position_ids begin anew"):
        model(input_ids=torch.cat([ids, more], 1), pixel_values=torch.cat([pixels, others]), **given)
