"""The model's final norm in front of the selection: in blocks, or as what a kernel needs to apply it itself."""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 4096  # tokens
# transformers' norms that are weight * (x / rms(x)).to(dtype): Gemma's (1 + weight) and others are not.
PLAIN_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3VLTextRMSNorm")


def norm_in_blocks(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """`norm(hidden)` [B, S, D], None for no norm; its temporaries, in float32, are those of one block of tokens."""
    if norm is None:
        return hidden
    if hidden.shape[1] <= BLOCK:
        return norm(hidden)
    out = torch.empty_like(hidden)
    for start in range(0, hidden.shape[1], BLOCK):
        out[:, start : start + BLOCK] = norm(hidden[:, start : start + BLOCK])
    return out


def rms_norm(norm: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, float] | None:
    """(weight [D], eps) of a plain RMSNorm in the dtype of `hidden`; None for any other norm."""
    if type(norm).__name__ not in PLAIN_RMS_NORMS or norm.weight.dtype != hidden.dtype or norm._forward_hooks:
        return None
    return norm.weight.detach(), float(norm.variance_epsilon)
