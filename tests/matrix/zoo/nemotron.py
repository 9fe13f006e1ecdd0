"""Nemotron-H Omni: RADIO's tower; state space, attention, experts and MLP are layers of their own."""

from __future__ import annotations

import torch

from . import IMAGE, PATCH, SIZE, WIDTH, Case, Picture, family, tiny
from .qwen_like import GRIDS


def packed(number, generator):
    height, width = GRIDS[number % len(GRIDS)]
    pixels = torch.randn(height * width, 3 * PATCH * PATCH, generator=generator)
    grid = torch.tensor([[height, width]])
    return Picture([IMAGE] * (height * width // 4), {"pixel_values": pixels, "image_grid_hw": grid})


@family("nemotron_h_omni")
def nemotron_h_omni(name, attention):
    text = {
        "layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"] * 3,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 16,
        # The prompt's step widths are clamped at time_step_min, those of decoding are not: here none is so small.
        "time_step_min": 1e-6,
        "time_step_floor": 1e-2,
    }
    tower = {"max_img_size": 2 * SIZE, "video_temporal_patch_size": 2}
    sizes = {"projector_hidden_size": WIDTH, "vision_hidden_size": WIDTH}
    model = tiny(name, attention, text_config=text, vision_config=tower, image_token_id=IMAGE, **sizes)
    note = "attention without rotary angles; layers of experts or MLP have neither keys nor a cache; last norm: norm_f"
    return Case(model=model, image=packed, decoder="language_model.model", note=note)
