"""What pruning must equal: the unpruned model, whose layers from K on may not look at what was dropped there.

Independent of the engine: no token is taken out, no cache is used, every layer keeps the mask and the angles that it
is given. Only a layer without softmax attention, whose state runs over all tokens, is given the kept ones alone.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import torch

PREFIX = ("paligemma",)  # the whole prompt is bidirectional: decoding cannot be computed again as one row


def kept_rows(inputs, case, kept, added=0):
    """LongTensor of the positions of a row [1, S] that stay: text, kept visual tokens and `added` answer tokens."""
    ids = inputs["input_ids"][0]
    text = ~torch.isin(ids, torch.tensor(case.image_tokens))
    rows = torch.cat([text.nonzero().flatten(), kept.cpu(), len(ids) + torch.arange(added)])
    return rows.sort().values


def longer(inputs, case, tokens):
    """The inputs [1, S] with answer tokens [n] added; None where tokens of the prompt see what comes after them."""
    if case.bidirectional and case.types != "mm_token_type_ids" and case.model_type in PREFIX:
        return None
    result = dict(inputs)
    for name, value in (("input_ids", tokens), ("attention_mask", torch.ones_like(tokens)), (case.types, tokens * 0)):
        if name in result:
            result[name] = torch.cat([result[name], value[None]], 1)
    return result


def _positions(mask, length):
    """A prepared mask as bool [1, 1, S, S]; None is causal."""
    if mask is None:
        return torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return mask if mask.dtype == torch.bool else mask == 0


@contextmanager
def masked(decoder, stages):
    """stages: {layer: LongTensor of the positions that layers from there on see}."""
    hooks = []

    def rows_at(number):
        layers = [layer for layer in stages if layer <= number]
        return stages[max(layers)] if layers else None

    def before(number, softmax):
        def hook(module, args, kwargs):
            given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            given |= given.pop("kwargs", {})
            rows, hidden = rows_at(number), given["hidden_states"]
            if softmax:
                seen = _positions(given.get("attention_mask"), hidden.shape[1]).clone()
                dropped = torch.ones(hidden.shape[1], dtype=torch.bool)
                dropped[rows] = False
                seen[..., dropped] = False
                seen |= torch.eye(hidden.shape[1], dtype=torch.bool)  # what a dropped row sees is nobody's business
                return (), {**given, "attention_mask": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)}
            module.full_length_states = hidden
            short = {"hidden_states": hidden[:, rows]}
            for name, value in given.items():
                if isinstance(value, torch.Tensor) and name != "hidden_states" and value.ndim == 2:
                    short[name] = value[..., rows]
            return (), {**given, **short}

        return hook

    def after(number):
        def hook(module, args, output):
            states = output[0] if isinstance(output, tuple) else output
            whole = module.full_length_states.clone()
            whole[:, rows_at(number)] = states
            del module.full_length_states
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        return hook

    for number, layer in enumerate(decoder.layers):
        if rows_at(number) is None:
            continue
        softmax = any(hasattr(child, "k_proj") or "Attention" in type(child).__name__ for child in layer.children())
        softmax = softmax and not any("linear_attn" in name or "conv" in name for name, _ in layer.named_children())
        hooks.append(layer.register_forward_pre_hook(before(number, softmax), with_kwargs=True))
        if not softmax:
            hooks.append(layer.register_forward_hook(after(number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def reference(case, inputs, stages):
    """Logits [S, V] of one row; `stages` as in `masked`."""
    with masked(case.model.get_submodule(case.decoder), stages):
        return case.model(**inputs, use_cache=False).logits[0]
