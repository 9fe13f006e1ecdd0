"""What only a GPU can show: no wait between host and device, CUDA graphs, and the same tokens at real sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import prompt, tiny_llava
from test_pruner import KEEP
from transformers import StaticCache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import dart
from benchmarks.phases import host_waits
from dart import kernels
from dart.engine.selection import plan_batch, select_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
TOKENS, WIDTH, HEADS, HEAD = 2950, 4096, 32, 128


def inputs(dtype: torch.dtype, batch: int = 1, seed: int = 0):
    generator = torch.Generator("cuda").manual_seed(seed)
    made = {"device": "cuda", "dtype": dtype, "generator": generator}
    spans = np.zeros((batch, TOKENS), dtype=np.int64)
    spans[:, 35:2915] = 1
    hidden = torch.randn(batch, TOKENS, WIDTH, **made)
    keys = torch.randn(batch, HEADS, TOKENS, HEAD, **made)
    return hidden, keys, spans, LlamaRMSNorm(WIDTH).to("cuda", dtype)


@pytest.mark.parametrize("strategy", ["dart", "spread"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_tokens_at_real_sizes(monkeypatch, dtype, batch, strategy):
    """All but a few: two roundings of a norm may order neighbours the other way round."""
    hidden, keys, spans, norm = inputs(dtype, batch)
    config, rows = dart.DartConfig(keep=320, strategy=strategy), []
    for mode in ("torch", "triton"):
        monkeypatch.setenv(kernels.VARIABLE, mode)
        rows.append(select_rows(hidden, norm, keys, spans, None, config).rows)
    for one, other in zip(*rows, strict=True):
        assert len(set(one.tolist()) & set(other.tolist())) >= 0.98 * len(one)


@pytest.mark.parametrize("strategy", ["dart", "spread"])
def test_nothing_waits_in_a_selection(monkeypatch, strategy):
    monkeypatch.setenv(kernels.VARIABLE, "triton")
    hidden, keys, spans, norm = inputs(torch.bfloat16, 2)
    config = dart.DartConfig(keep=320, strategy=strategy)
    select_rows(hidden, norm, keys, spans, None, config)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        select_rows(hidden, norm, keys, spans, None, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("static", [False, True])
def test_a_pruned_prefill_waits_no_more_than_an_unpruned_one(static):
    model = tiny_llava().cuda()
    ids, pixels = (each.cuda() for each in prompt(5, 7))

    @torch.no_grad()
    def prefill() -> None:
        config = model.config.get_text_config()
        cache = StaticCache(config=config, max_cache_len=64) if static else None
        model(input_ids=ids, pixel_values=pixels, past_key_values=cache, logits_to_keep=1)

    prefill()
    plain = host_waits(prefill, model.device)
    with dart.prune(model, KEEP):
        prefill()
        assert host_waits(prefill, model.device) <= plain


@pytest.mark.parametrize("strategy", ["dart", "spread"])
def test_a_cuda_graph_repeats_the_selection(monkeypatch, strategy):
    from benchmarks.kernels import plan

    monkeypatch.setenv(kernels.VARIABLE, "triton")
    (hidden, keys, spans, norm), (others, other_keys, *_) = inputs(torch.bfloat16), inputs(torch.bfloat16, seed=1)
    config = dart.DartConfig(keep=320, strategy=strategy)
    run = plan(plan_batch(hidden, norm, keys, spans, None, config), config)
    first, second = run(hidden, norm, keys), run(others, norm, other_keys)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = run(hidden, norm, keys)
    graph.replay()
    assert torch.equal(rows, first)
    hidden.copy_(others)
    keys.copy_(other_keys)
    graph.replay()
    assert torch.equal(rows, second) and not torch.equal(first, second)
