"""Families without kin: Llama 4, LFM2-VL."""

from __future__ import annotations

import torch

from . import IMAGE, LAYERS, PATCH, SIZE, WIDTH, Case, Picture, family, square, tiny


@family("llama4")
def llama4(name, attention):
    """Layers with chunks of 16 tokens and rotary angles, and full ones without angles, in turn."""
    vision = {"vision_output_dim": WIDTH, "projector_input_dim": WIDTH, "projector_output_dim": WIDTH}
    text = {"attention_chunk_size": 16, "no_rope_layers": [1, 0] * (LAYERS // 2), "intermediate_size_mlp": 64}
    model = tiny(name, attention, text_config=text, vision_config=vision)
    return Case(model=model, image=square((SIZE // PATCH) ** 2 // 4))


@family("lfm2_vl")
def lfm2_vl(name, attention):
    """Every other decoder layer is a convolution over the last three tokens."""

    def image(number, generator):
        height, width = [(4, 6), (2, 4), (4, 4)][number % 3]  # patches
        tensors = {
            "pixel_values": torch.randn(1, height * width, 3 * PATCH * PATCH, generator=generator),
            "pixel_attention_mask": torch.ones(1, height * width, dtype=torch.long),
            "spatial_shapes": torch.tensor([[height, width]]),
        }
        return Picture([IMAGE] * (height * width // 4), tensors)

    text = {"layer_types": ["conv", "full_attention"] * (LAYERS // 2), "block_multiple_of": 16}
    model = tiny(name, attention, text_config=text, vision_config={"num_patches": 64}, projector_hidden_size=64)
    return Case(model=model, image=image)
