"""The flash_attention_2 path on CPU: a stand-in with its contract (2-D masks, packed sequences from positions)."""

from __future__ import annotations

import pytest
import torch
from conftest import IMAGE_TOKEN, prompt, tiny_llava
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence

import dart

NAME = "flash_standin"


def attend(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_: object):
    """[B, H, Q, D] -> [B, Q, H, D]. The mask is None or 2-D [B, KV]; causality is bottom-right aligned, as in flash."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    new, total = query.shape[2], key.shape[2]
    seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)[None, None]
    if attention_mask is not None:
        assert attention_mask.shape == (len(query), total)
        seen = seen & attention_mask[:, None, None].bool()
    elif position_ids is not None and _is_packed_sequence(position_ids, len(query)):
        sequence = (position_ids.diff(prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)
        seen = seen & (sequence[:, None, :, None] == sequence[:, None, None, :])
    weights = (query @ key.mT * scaling).masked_fill(~seen, torch.finfo(query.dtype).min).softmax(-1)
    return (weights @ value).transpose(1, 2), None


@pytest.fixture
def pair():
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    plain, flash = tiny_llava("sdpa"), tiny_llava("sdpa")
    flash.model.language_model.config._attn_implementation = NAME  # the public setter wants an installed kernel
    return plain, flash


def logits(model, ids, pixels, **options):
    out = model.generate(
        input_ids=ids,
        pixel_values=pixels,
        max_new_tokens=4,
        do_sample=False,
        suppress_tokens=[IMAGE_TOKEN],
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return torch.stack(out.logits, 1)


def config(layer):
    return dart.DartConfig(keep=16, image_pivots=2, text_pivots=2, layer=layer)


@pytest.mark.parametrize("layer", [0, 2])
def test_kept_positions_are_not_read_as_packed_sequences(pair, layer):
    ids, pixels = prompt(5, 7)
    results = []
    for model in pair:
        with dart.prune(model, config(layer)):
            results.append(logits(model, ids, pixels))
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_left_padded_batch(pair, layer):
    one, two = prompt(3, 6, seed=1), prompt(8, 9, seed=2)
    ids = torch.cat([torch.nn.functional.pad(one[0], (8, 0)), two[0]])
    results = []
    for model in pair:
        with dart.prune(model, config(layer)):
            results.append(logits(model, ids, torch.cat([one[1], two[1]]), attention_mask=(ids != 0).long()))
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)


def test_rows_without_padding_that_keep_different_numbers(pair):
    ids, pixels = prompt(5, 7)
    text = torch.randint(2, 90, ids.shape, generator=torch.Generator().manual_seed(3))
    results = []
    for model in pair:
        with dart.prune(model, config(2)):
            results.append(logits(model, torch.cat([ids, text]), pixels))
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
