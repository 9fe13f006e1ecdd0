"""Attention for training the tiny model on a CPU, where bfloat16 matmuls are fast and fused attention is not."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "tiny_training"
FUSED_KEYS = 256  # with more keys than this the score matrix no longer fits the cache
GUIDED_LAYER, GUIDED_HEADS = 3, 2  # the heads that `losses.guidance_loss` shows where to look


def attention(module, query, key, value, attention_mask, picture=None, turn=None, looks=None, **_):
    """query, key, value [B, H, N, D] -> ([B, N, H, D], None).

    Without `picture` every position sees every other (the tower). With it, the first `picture` positions are causal,
    and after them lie independent turns of `turn` positions, each seeing the image and, causally, itself. To the
    list `looks`, the guided heads append what the turns see of the prefix and the image: [B, heads, Q, T, image].
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotated ones in float32
    if picture is None:
        return whole(query, key, value).transpose(1, 2), None
    head = whole(*(x[:, :, :picture] for x in (query, key, value)), causal=True)
    size, heads, _, width = query.shape
    asked, own_key, own_value = (x[:, :, picture:].reshape(size, heads, -1, turn, width) for x in (query, key, value))
    flat = asked.reshape(size, heads, -1, width)
    scale = width**-0.5
    shared = (flat @ key[:, :, :picture].transpose(-1, -2)).view(*asked.shape[:4], picture)
    own = asked @ own_key.transpose(-1, -2) + _causal(turn, query)
    with torch.autocast(query.device.type, enabled=False):
        weights = torch.softmax(torch.cat([shared, own], -1) * scale, -1)
    if looks is not None and module.layer_idx == GUIDED_LAYER:
        looks.append(weights[:, :GUIDED_HEADS, ..., :picture])
    tail = (weights[..., :picture].reshape(size, heads, -1, picture) @ value[:, :, :picture]) + (
        weights[..., picture:] @ own_value
    ).reshape(flat.shape)
    return torch.cat([head, tail], 2).transpose(1, 2), None


def _causal(count: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((count, count), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


def whole(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool = False, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """query, key, value [B, H, N, D] -> [B, H, N, D]; mask: float [N, N], added to the scores."""
    with torch.autocast(query.device.type, enabled=False):
        if key.shape[2] > FUSED_KEYS:
            wide = (x.float() for x in (query, key, value))
            return scaled_dot_product_attention(*wide, attn_mask=mask, is_causal=causal).to(query.dtype)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if causal:
            mask = _causal(key.shape[2], query)
        return torch.softmax(scores if mask is None else scores + mask.to(scores.dtype), -1) @ value


AttentionInterface.register(NAME, attention)
