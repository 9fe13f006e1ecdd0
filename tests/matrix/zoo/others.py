"""Families without kin."""

from __future__ import annotations

import torch

from . import IMAGE, LAYERS, PATCH, SIZE, WIDTH, Case, Picture, argument, family, skip, square, tiny


@family("llama4")
def llama4(name, attention):
    """Layers with chunks of 16 tokens and rotary angles, and full ones without angles, in turn."""
    vision = {"vision_output_dim": WIDTH, "projector_input_dim": WIDTH, "projector_output_dim": WIDTH}
    vision["intermediate_size"] = 4 * WIDTH  # also the width of 2 x 2 patches
    text = {"attention_chunk_size": 16, "no_rope_layers": [1, 0] * (LAYERS // 2), "intermediate_size_mlp": 64}
    model = tiny(name, attention, text_config=text, vision_config=vision)
    # transformers 5.24.0 reads this from its decoder's output, which lacks it: every forward fails without the hook.
    model.language_model.register_forward_hook(lambda module, args, output: setattr(output, "image_outputs", None))
    note = "fails by itself in transformers 5.24.0: its forward reads image_outputs of an output without it"
    return Case(model=model, image=square((SIZE // PATCH) ** 2 // 4), decoder="language_model.model", note=note)


@family("lfm2_vl")
def lfm2_vl(name, attention):
    """Every other decoder layer is a convolution over the last three tokens."""

    def image(number, generator):
        height, width = [(8, 10), (4, 8), (8, 8)][number % 3]  # patches
        tensors = {
            "pixel_values": torch.randn(1, height * width, 3 * PATCH * PATCH, generator=generator),
            "pixel_attention_mask": torch.ones(1, height * width, dtype=torch.long),
            "spatial_shapes": torch.tensor([[height, width]]),
        }
        return Picture([IMAGE] * (height * width // 4), tensors)

    text = {"layer_types": ["conv", "full_attention"] * (LAYERS // 2), "block_multiple_of": 16}
    model = tiny(name, attention, text_config=text, vision_config={"num_patches": 64}, projector_hidden_size=64)
    return Case(model=model, image=image)


@family("fuyu")
def fuyu(name, attention):
    """No tower: patches go through one projection."""

    def image(number, generator):
        patches = 16 + 4 * (number % 2)
        pixels = torch.randn(1, patches, 3 * PATCH * PATCH, generator=generator)
        return Picture([IMAGE] * patches, {name_of_pixels: pixels})

    model = tiny(name, attention, patch_size=PATCH)
    name_of_pixels = argument(model, "pixel_values", "image_patches")
    return Case(model=model, image=image, axes={name_of_pixels: (1, 1)})


skip("reads the image by gated cross-attention layers: its ids hold no visual tokens", "idefics")
skip("its image features are put before the text without placeholder tokens", "git")
skip("an encoder and a decoder (BART): the decoder reads the image by cross-attention", "florence2")
skip("answers about proteins, not images: protein features enter by cross-attention", "evolla")
skip("writes blocks of tokens by denoising a canvas: there are no logits of the prompt's next token", "diffusion_gemma")
