"""Families x strategies x attention x caches, each against the unpruned model that may not look at what was dropped."""

from __future__ import annotations

import re

import families
import pytest
import torch
import transformers
import zoo
from families import CLOSE, CONFIG, DOCUMENT, SPECIAL
from reference import kept_rows, longer, reference
from transformers import DynamicCache, StaticCache

import dart
from dart.engine.forward import FINISHED

# One for each kind of decoder: plain, M-RoPE, DeepStack, windows with their own angles, linear attention, shared keys.
KINDS = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "qwen3_5", "gemma4"]
STRATEGIES = [name for name in dart.strategies.available() if dart.strategies.get(name).stages(CONFIG, 6)]
MERGING = {"pooling", "visionzip", "tome", "vscan"}  # of which no mask can tell: tests/test_methods.py
TYPES = [name for name in zoo.names() if ":" not in name]


@pytest.fixture(params=KINDS)
def kind(request):
    if request.param not in zoo.names():
        pytest.skip(f"not in transformers {transformers.__version__}")
    return request.param


@pytest.mark.parametrize("name", zoo.names())
def test_every_family_is_exact_or_refused_as_documented(name):
    result = families.result_of(name)
    if families.MISSING in result.reason:
        pytest.skip(result.reason)
    row = re.search(rf"^\| {re.escape(name)} \| (exact|refused: .*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = re.search(r"transformers ([\d.]+)", DOCUMENT.read_text()).group(1)
    if ":" not in name and documented == transformers.__version__:
        assert row is not None and (row.group(1) == "exact") == (not result.reason), "docs/families.md is out of date"
        assert result.reason in row.group(1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - MERGING))
def test_every_strategy(kind, strategy, attention):
    """Prompt and decoding, of one stage or several; what a strategy cannot have here is refused by name."""
    case = zoo.make(kind, attention)
    config = dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, strategy=strategy)
    inputs = case.inputs(images=2)
    stages = {}
    with torch.no_grad():
        try:
            handle = dart.prune(case.model, config)
        except ValueError as error:
            assert strategy in str(error) or "reads the keys" in str(error)
            return
        with handle:
            try:
                logits = case.model(**inputs).logits[0]
            except ValueError as error:
                assert strategy in str(error) or "tower" in str(error)
                return
            whole = handle.last
            for number, stage in enumerate(handle.last.stages):
                visual = stage.visual_after[0]
                stages[stage.layer] = visual
                assert whole.visual_per_layer[0][stage.layer] == visual, number
    kept = {stage.layer: stage.rows[0] for stage in FINISHED.get().kept}
    rows = kept_rows(inputs, case, whole.kept[0])
    assert set(kept) <= set(stages) and kept[max(kept)].tolist() == rows.tolist()
    assert (logits - reference(case, inputs, kept)[rows]).abs().max() < CLOSE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_every_layer(kind, layer, attention):
    case = zoo.make(kind, attention)
    config = dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, layer=layer)
    if kind == "gemma4" and layer == 3:
        with pytest.raises(ValueError, match="layer 4 reads the keys of layer 2"):
            dart.prune(case.model, config)
        return
    assert families.compare(case, config).difference < CLOSE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_padded_batch_equals_its_rows_alone(kind, attention):
    case = zoo.make(kind, attention)
    rows = [case.inputs(text_before=3), case.inputs(images=2, text_before=5, seed=1)]
    options = {"max_new_tokens": 4, "suppress_tokens": SPECIAL, "output_logits": True, "return_dict_in_generate": True}
    with dart.prune(case.model, CONFIG):
        alone = [torch.stack(case.model.generate(**row, **options).logits, 1)[0] for row in rows]
        both = torch.stack(case.model.generate(**zoo.batch(case, rows), **options).logits, 1)
    for number, logits in enumerate(alone):
        assert (both[number] - logits).abs().max() < CLOSE


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_a_static_cache_equals_a_dynamic_one(kind, layer):
    case = zoo.make(kind)
    inputs, text = case.inputs(), case.model.config.get_text_config()
    config = dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, layer=layer)
    options = {"max_new_tokens": 6, "suppress_tokens": SPECIAL, "output_logits": True, "return_dict_in_generate": True}
    with dart.prune(case.model, config):
        wanted = torch.stack(case.model.generate(**inputs, **options).logits, 1)
        try:
            static = StaticCache(config=text, max_cache_len=64)
        except ValueError as error:
            pytest.skip(str(error))
        out = case.model.generate(**inputs, past_key_values=static, disable_compile=True, **options)
    assert (torch.stack(out.logits, 1) - wanted).abs().max() < CLOSE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_two_turns_on_one_cache(kind, attention):
    """The second turn brings an image of its own; nothing of the first one is forgotten or seen again."""
    case = zoo.make(kind, attention)
    one, two = case.inputs(seed=1), case.inputs(text_before=3, seed=2)
    joined = {name: torch.cat([one[name], two[name]], int(name in _PER_TOKEN)) for name in one}
    length = one["input_ids"].shape[1]

    def talk():
        cache = DynamicCache(config=case.model.config.get_text_config(decoder=True))
        case.model(**one, past_key_values=cache)
        yield
        yield case.model(**(two | {"attention_mask": joined["attention_mask"]}), past_key_values=cache).logits[0]

    try:
        _, plain = talk()
    except RuntimeError as error:
        pytest.skip(f"the unpruned model cannot take a second turn like this: {error}")
    if (plain - case.model(**joined).logits[0, length:]).abs().max() > CLOSE:
        pytest.skip("the unpruned model itself takes a second turn otherwise than one conversation")
    with dart.prune(case.model, CONFIG) as handle:
        turns = talk()
        next(turns)
        first = handle.last
        logits = next(turns)
        kept = torch.cat([first.kept[0], handle.last.kept[0] + length])
    rows = kept_rows(joined, case, kept)
    wanted = reference(case, joined, {first.layer: rows})[rows][-len(logits) :]
    assert (logits - wanted).abs().max() < CLOSE


_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@pytest.mark.parametrize("strategy", ["dart", "evs"])
@torch.no_grad()
def test_a_video(kind, strategy):
    """By frames, too: joint, since they are spans of their own in some families."""
    case = zoo.make(kind)
    if case.video is None:
        pytest.skip("no video in this family")
    config = CONFIG if strategy == "dart" else dart.DartConfig(keep=0.7, strategy=strategy, scope="joint")
    try:
        assert families.compare(case, config, case.video_inputs()).difference < CLOSE
    except ValueError as error:
        assert strategy == "evs" and "'evs'" in str(error)
        pytest.skip(str(error))


def gradients_of(case, inputs, labels, checkpointing=None):
    """(loss, gradients by name) of one training step; checkpointing: None, or whether it is the reentrant kind."""
    model = case.model.train()
    model.zero_grad()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    model.gradient_checkpointing_disable()
    model.eval()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("reentrant", [False, True])
def test_training_with_checkpointing(kind, reentrant):
    """The loss is the reference's over the kept tokens, and checkpointing changes no gradient."""
    case = zoo.make(kind)
    inputs = case.inputs()
    ids = inputs["input_ids"]
    labels = torch.where(torch.isin(ids, torch.tensor(case.image_tokens)), -100, ids)
    with dart.prune(case.model, CONFIG) as handle:
        loss, plain = gradients_of(case, inputs, labels)
        _, checkpointed = gradients_of(case, inputs, labels, reentrant)
    rows = kept_rows(inputs, case, handle.last.kept[0])
    logits = reference(case, inputs, {handle.last.layer: rows})[rows]
    wanted = torch.nn.functional.cross_entropy(logits[:-1], labels[0, rows][1:], ignore_index=-100)
    torch.testing.assert_close(loss, wanted, atol=CLOSE, rtol=0)
    difference = apart(plain, checkpointed)
    unpruned = apart(gradients_of(case, inputs, labels)[1], gradients_of(case, inputs, labels, reentrant)[1])
    if unpruned > CLOSE:  # Gemma 4's shared keys are outside reentrant checkpoints
        pytest.skip("checkpointing changes the gradients of the unpruned model, too")
    assert difference < CLOSE


def test_longer_adds_answer_tokens():
    """The reference's own helper: a row with its answer is one longer row."""
    case = zoo.make("llava")
    inputs = case.inputs()
    whole = longer(inputs, case, torch.tensor([5, 6]))
    assert whole["input_ids"][0, -2:].tolist() == [5, 6] and whole["attention_mask"].shape == whole["input_ids"].shape
