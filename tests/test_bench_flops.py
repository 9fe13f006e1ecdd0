"""The formulas behind the ceilings, against torch's own counter and the published figures."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks import flops
from benchmarks.phases import cache_bytes, peak_bytes
from benchmarks.shapes import SHAPES, config_of

VICUNA = flops.Decoder.of(config_of(SHAPES["llava-next-7b"]).get_text_config())
VISUAL, KEPT, LAYER = 2880, 320, 2


def tiny(kv_heads: int, attention: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
    )
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("tokens", [1, 17])
def test_prefill_flops_are_those_that_torch_counts(kv_heads, tokens):
    model = tiny(kv_heads, "eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
    counts = counter.get_flop_counts()
    # The rotary embedding's own product (positions by frequencies) is the one thing beside layers and head.
    parts = [f"LlamaForCausalLM.model.layers.{k}" for k in range(3)] + ["LlamaForCausalLM.lm_head"]
    counted = sum(sum(counts[name].values()) for name in parts)
    assert flops.prefill_flops(flops.Decoder.of(model.config), [tokens] * 3, causal=False) == counted
    assert counted > 0.99 * counter.get_total_flops()


def test_causal_attention_is_half_and_the_diagonal():
    full, causal = (flops.layer_flops(VICUNA, 100, causal) for causal in (False, True))
    assert full - causal == 4 * VICUNA.heads * VICUNA.head_dim * (100 * 100 - 100 * 101 // 2)
    assert flops.layer_flops(VICUNA, 1) == flops.layer_flops(VICUNA, 1, causal=False)


def test_the_first_layers_keep_all_tokens():
    assert flops.lengths(4, 2, 9, 3) == [9, 9, 3, 3]


def test_kv_bytes_are_those_of_the_tensors():
    model, cache = tiny(2, "sdpa"), DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.ones(2, 13, dtype=torch.long), past_key_values=cache)
    assert cache_bytes(cache) == 2 * flops.kv_bytes(flops.Decoder.of(model.config), [13] * 3, 4)


def test_true_shares_of_the_published_setting():
    """What 1512.1 MB and 100 % of FLOPs come down to with two full layers: 252 MB and 15.5 %, not 168 MB and 12.8 %."""
    share = flops.kv_ratio(VICUNA.layers, LAYER, VISUAL, KEPT)
    assert 1512.1 * share == pytest.approx(252.0, abs=0.1)
    published = 1512.1 * KEPT / VISUAL
    assert published == pytest.approx(168.0, abs=0.1)
    assert flops.published_ratio(VICUNA, LAYER, VISUAL, KEPT) == pytest.approx(0.155, abs=0.0005)
    one_full_layer = flops.published_ratio(VICUNA, 1, VISUAL, KEPT)
    assert one_full_layer == pytest.approx(0.128, abs=0.002)


def test_the_prototypes_ratio():
    """A 135M-class decoder, 2,950 tokens of which 2,880 are visual, 324 kept: 6.4 times fewer operations."""
    decoder = flops.Decoder.of(config_of(SHAPES["decoder-135m"]).get_text_config())
    full = flops.prefill_flops(decoder, [2950] * decoder.layers)
    left = flops.prefill_flops(decoder, flops.lengths(decoder.layers, 2, 2950, 2950 - 2880 + 324))
    assert full / left == pytest.approx(6.4, abs=0.02)


def test_peak_counts_what_is_alive_at_once():
    def work() -> torch.Tensor:
        first = torch.ones(1000, 100)
        second = first + 1
        del first
        return second.sum() + torch.ones(500, 100).sum()

    assert peak_bytes(work, torch.device("cpu")) == pytest.approx(2 * 400_000, rel=0.01)
