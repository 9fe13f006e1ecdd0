"""Small helpers that LLaVA's scripts import by name."""

from __future__ import annotations

import torch


def disable_torch_init() -> None:
    """Skip the random initialisation of linear and norm layers: the checkpoint overwrites them (process-wide)."""

    def keep(self: torch.nn.Module) -> None:
        return None

    for layer in (torch.nn.Linear, torch.nn.LayerNorm):
        setattr(layer, "reset_parameters", keep)  # noqa: B010 - a method is replaced on purpose, as LLaVA's callers expect
