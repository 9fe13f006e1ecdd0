"""Operations and cache bytes of a prefill, by formula: what pruning after layer K can give at best.

For one decoder layer with n queries, hidden size D, H heads and G key/value heads of size h, and a gated MLP of size I:

    linear layers   2 n (D H h + 2 D G h + H h D + 3 D I)
    attention       4 H h * (pairs of a query and a key)        pairs = n (n + 1) / 2 when causal, else n^2

Multiplications and additions both count, as in `torch.utils.flop_counter`; norms, rotary embeddings and softmax do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decoder:
    """The sizes of a text model that its operations depend on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """Read from a transformers text config."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
        )


def lengths(layers: int, layer: int, before: int, after: int) -> list[int]:
    """Tokens in each of `layers` decoder layers: `before` in the first `layer` ones (K), `after` in the others."""
    return [before if k < layer else after for k in range(layers)]


def layer_flops(decoder: Decoder, tokens: int, causal: bool = True) -> int:
    """Operations of one decoder layer over `tokens` new tokens and an empty cache."""
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    weights = decoder.hidden * (2 * queries + 2 * keys + 3 * decoder.intermediate)
    pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    return 2 * tokens * weights + 4 * queries * pairs


def prefill_flops(decoder: Decoder, tokens: list[int], causal: bool = True) -> int:
    """Operations of a prefill with `tokens[k]` tokens in layer k, and of one row of logits."""
    return sum(layer_flops(decoder, n, causal) for n in tokens) + 2 * decoder.hidden * decoder.vocabulary


def kv_bytes(decoder: Decoder, tokens: list[int], element_size: int) -> int:
    """Bytes of keys and values of `tokens[k]` tokens in layer k."""
    return 2 * sum(tokens) * decoder.kv_heads * decoder.head_dim * element_size


def published_ratio(decoder: Decoder, layer: int, before: int, after: int) -> float:
    """The share of operations left, as papers on token pruning count it: visual tokens alone, 4nD^2 + 2n^2D + 2nDI.

    FastV's formula (arXiv 2403.06764), which later papers took over: no gate in the MLP, all heads with keys of their
    own, attention without the causal half.
    """

    def operations(n: int) -> int:
        return 4 * n * decoder.hidden**2 + 2 * n * n * decoder.hidden + 2 * n * decoder.hidden * decoder.intermediate

    full = operations(before) * decoder.layers
    return (operations(before) * layer + operations(after) * (decoder.layers - layer)) / full


def kv_ratio(layers: int, layer: int, before: int, after: int) -> float:
    """The share of cache slots left: the first `layer` layers keep all of theirs."""
    return sum(lengths(layers, layer, before, after)) / (layers * before)
