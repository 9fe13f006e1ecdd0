"""What `dart` reads from transformers' signatures: an argument with another name works, one that is gone is refused."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from conftest import prompt, tiny_llava
from torch import nn
from transformers import Cache

import dart
from dart.engine.layers import cache_argument, read_layers

KEEP = dart.DartConfig(keep=16, image_pivots=2, text_pivots=2)


def renamed(model, **names):
    """The model's layers and attentions with other names of arguments (None: without it), as in another release."""
    for layer in model.model.language_model.layers:
        for module in (layer.self_attn, layer):
            forward, signature = module.forward, inspect.signature(module.forward)
            parameters = []
            for each in signature.parameters.values():
                new = names.get(each.name, each.name)
                if new is not None:
                    parameters.append(each.replace(name=new))

            def call(*args, _forward=forward, **kwargs):
                back = {new: old for old, new in names.items() if new}
                return _forward(*args, **{back.get(name, name): value for name, value in kwargs.items()})

            call.__signature__ = signature.replace(parameters=parameters)
            module.forward = call
        layer.register_forward_pre_hook(partial(_translate, names), with_kwargs=True)
    return model


def _translate(names, module, args, kwargs):
    return args, {names.get(name, name): value for name, value in kwargs.items()}


@torch.no_grad()
def test_a_renamed_cache_works():
    ids, pixels = prompt(5, 7)
    with dart.prune(tiny_llava(), KEEP) as handle:
        wanted = handle.model(input_ids=ids, pixel_values=pixels).logits
        name = handle.layers[0].cache
    model = renamed(tiny_llava(), **{name: "kv_cache"})
    with dart.prune(model, KEEP) as handle:
        assert handle.layers[0].cache == "kv_cache"
        out = model(input_ids=ids, pixel_values=pixels)
        assert torch.equal(out.logits, wanted)
        assert out.past_key_values.layers[2].keys.shape[2] == wanted.shape[1]


@pytest.mark.parametrize("argument", ["cache", "attention_mask"])
def test_a_missing_argument_is_refused(argument):
    model = tiny_llava()
    name = cache_argument(model.model.language_model.layers[0]) if argument == "cache" else argument
    with pytest.raises(ValueError, match=r"LlamaDecoderLayer of transformers [\d.]+ takes no .*tested with"):
        dart.prune(renamed(model, **{name: None}), KEEP)
    assert dart.handle_of(model) is None


def test_names_are_found_by_type_too():
    class Attention(nn.Module):
        def forward(self, hidden_states, memory: Cache | None = None):
            """An argument whose type alone says what it is."""

    class Two(nn.Module):
        def forward(self, hidden_states, first_cache=None, second_cache=None):
            """Nobody knows which."""

    assert cache_argument(Attention()) == "memory"
    assert cache_argument(Two()) is None


def test_what_is_read_of_a_layer():
    read = read_layers(tiny_llava().model.language_model)
    assert [each.slot for each in read] == [0, 1, 2, 3]
    assert not any(each.recurrent or each.shares for each in read)
