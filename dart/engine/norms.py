"""The model's final norm in front of the selection: in blocks, or as what a kernel needs to apply it itself."""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 4096  # tokens
# transformers' norms that are weight * (x / rms(x)).to(dtype): Gemma's (1 + weight) and others are not.
PLAIN_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3VLTextRMSNorm")


def norm_in_blocks(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """`norm(hidden)` [B, S, D], None for no norm; its temporaries, in float32, are those of one block of tokens.

    The norm may lie on another device, or be offloaded, sharded or partitioned: it is called as a module, so that
    accelerate's, FSDP's and DeepSpeed's hooks bring its weight, and the result comes back to where `hidden` is.
    """
    if norm is None:
        return hidden
    weight = getattr(norm, "weight", None)
    home = hidden.device if weight is None or weight.device.type == "meta" else weight.device
    if hidden.shape[1] <= BLOCK:
        return norm(hidden.to(home)).to(hidden.device)
    out = torch.empty_like(hidden)
    for start in range(0, hidden.shape[1], BLOCK):
        out[:, start : start + BLOCK] = norm(hidden[:, start : start + BLOCK].to(home))
    return out


def rms_norm(norm: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, float] | None:
    """(weight [D], eps) of a plain RMSNorm whose whole weight lies beside `hidden`, in its dtype; None for others."""
    weight: Any = getattr(norm, "weight", None)
    if type(norm).__name__ not in PLAIN_RMS_NORMS or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    plain = isinstance(weight, torch.Tensor) and not hasattr(weight, "ds_id") and not hasattr(weight, "placements")
    if (
        not plain
        or weight.dtype != hidden.dtype
        or weight.device != hidden.device
        or weight.numel() != hidden.shape[-1]
    ):
        return None
    return weight.detach(), float(norm.variance_epsilon)
