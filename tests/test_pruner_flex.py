"""flex_attention on a CPU, where torch can run it uncompiled: the same logits as sdpa, and the mask by itself."""

from __future__ import annotations

import pytest
import torch
from conftest import IMAGE_TOKEN, prompt, tiny_llava
from torch.nn.attention.flex_attention import create_block_mask

import dart
from dart.engine.masks import PADDING, gather_mask


@pytest.fixture(scope="module")
def pair():
    """(sdpa, flex) of the same weights."""
    plain, flex = tiny_llava("sdpa"), tiny_llava("sdpa")
    flex.model.language_model.set_attn_implementation("flex_attention")
    return plain, flex


@torch.no_grad()
def logits(model, ids, **options):
    with torch.compiler.set_stance("force_eager"):
        out = model.generate(
            input_ids=ids,
            max_new_tokens=3,
            do_sample=False,
            suppress_tokens=[IMAGE_TOKEN],
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(out.logits, 1)


@pytest.mark.parametrize("layer", [0, 2])
def test_flex_equals_sdpa_for_one_prompt_and_a_padded_batch(pair, layer):
    one, two = prompt(3, 6, seed=1), prompt(8, 9, images=2, seed=2)
    gap = two[0].shape[1] - one[0].shape[1]
    ids = torch.cat([torch.nn.functional.pad(one[0], (gap, 0)), two[0]])
    batch = {"pixel_values": torch.cat([one[1], two[1]]), "attention_mask": (ids != 0).long()}
    config = dart.DartConfig(keep=0.5, image_pivots=2, text_pivots=2, layer=layer)
    results = []
    for model in pair:
        with dart.prune(model, config) as handle:
            single = logits(model, one[0], pixel_values=one[1])
            results.append((single, logits(model, ids, **batch), handle.last.visual_after))
    assert results[0][2] == results[1][2] and results[0][2][0] < results[0][2][1]  # rows of different lengths
    for sdpa, flex in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(flex, sdpa, atol=1e-4, rtol=0)
    torch.testing.assert_close(results[1][1][0], results[1][0][0], atol=1e-4, rtol=0)


def dense(mask, queries, keys):
    """bool [B, queries, keys] of a BlockMask's own rule."""
    sizes = (mask.shape[0], queries, keys)
    b, q, k = (torch.arange(n) for n in sizes)
    return mask.mask_mod(b[:, None, None], torch.tensor(0), q[None, :, None], k[None, None, :]).expand(sizes)


@pytest.mark.parametrize("past", [0, 4])
def test_the_block_mask_is_the_dense_mask(past):
    """Two rows that keep different positions; the first one's prompt starts with padding."""
    rows = torch.tensor([[PADDING, 1, 3, 5], [0, 1, 4, 5]])
    before = torch.arange(past).expand(2, -1)
    columns = torch.cat([before, torch.where(rows < 0, rows, rows + past)], 1)
    length = past + 6
    valid = torch.ones(2, length, dtype=torch.bool)
    valid[0, 0] = False
    position = torch.arange(past, length)
    causal = (torch.arange(length)[None, :] <= position[:, None])[None, None] & valid[:, None, None]
    full = create_block_mask(lambda b, h, q, k: (q + past >= k) & valid[b, k], 2, None, 6, length, device="cpu")
    block = gather_mask(full, rows, columns, 6, past, True, False)
    wanted = gather_mask(causal, rows, columns, 6, past, True, False)[:, 0]
    real = rows >= 0  # what a padding query sees is nobody's business, as long as it sees something
    got = dense(block, *wanted.shape[1:])
    assert torch.equal(got[real], wanted[real])
    assert got.any(-1).all()
