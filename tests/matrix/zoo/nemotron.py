"""Nemotron-H Omni: a RADIO tower; layers of state space, attention, experts and MLP, each a layer of its own."""

from __future__ import annotations

import torch

from . import IMAGE, PATCH, SIZE, WIDTH, Case, Picture, family, tiny

GRIDS = [(4, 6), (6, 2), (4, 4)]  # patches (height, width) of the images of a row


def packed(number, generator):
    height, width = GRIDS[number % len(GRIDS)]
    pixels = torch.randn(height * width, 3 * PATCH * PATCH, generator=generator)
    grid = torch.tensor([[height, width]])
    return Picture([IMAGE] * (height * width // 4), {"pixel_values": pixels, "image_grid_hw": grid})


@family("nemotron_h_omni")
def nemotron_h_omni(name, attention):
    text = {"layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"] * 3}
    text |= {
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "time_step_min": 1e-6,
        "time_step_floor": 1e-2,
    }
    text |= {"moe_shared_expert_intermediate_size": 16}
    model = tiny(
        name,
        attention,
        text_config=text,
        vision_config={"max_img_size": 2 * SIZE, "video_temporal_patch_size": 2},
        image_token_id=IMAGE,
        projector_hidden_size=WIDTH,
        vision_hidden_size=WIDTH,
    )
    note = "attention without rotary angles; half of the layers are experts or MLP and have neither keys nor a cache"
    return Case(model=model, image=packed, decoder="language_model.model", note=note)
