"""Towers that take images of one size: pixel_values [images, 3, height, width], a fixed number of tokens an image."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from . import END, HEADS, IMAGE, PATCH, SIZE, START, WIDTH, Case, Picture, family, skip, square, tiny
from .sam_like import EDGE, SAM, got_ocr2

PATCHES = (SIZE // PATCH) ** 2
POOLED = PATCHES // 4

family("pp_chart2table")(got_ocr2)


@family("qianfan_ocr")
def qianfan_ocr(name, attention):
    return Case(model=tiny(name, attention), image=square(POOLED))


@family("janus")
def janus(name, attention):
    quantizer = {"num_embeddings": 16, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1]}
    quantizer |= {"num_res_blocks": 1, "num_patches": 4, "image_token_embed_dim": WIDTH}
    model = tiny(name, attention, vq_config=quantizer)
    note = "generation_mode='image' makes a picture token by token and calls the decoder itself"
    return Case(model=model, image=square(PATCHES), note=note)


if find_spec("timm"):

    @family("perception_lm")
    def perception_lm(name, attention):
        vit = {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "img_size": [SIZE, SIZE], "patch_size": PATCH}
        vit |= {"global_pool": "", "ref_feat_shape": [SIZE // PATCH] * 2}
        tower = {"architecture": "vit_pe_core_tiny_patch16_384", "model_args": vit}

        def tile(number, generator):
            pixels = torch.randn(1, 1, 3, SIZE, SIZE, generator=generator)  # image, tile, channel, row, column
            return Picture([IMAGE] * POOLED, {"pixel_values": pixels})

        return Case(model=tiny(name, attention, vision_config=tower, projector_pooling_ratio=2), image=tile)
else:
    skip("its vision tower needs the package timm", "perception_lm")


@family("unlimited_ocr")
def unlimited_ocr(name, attention):
    vision = {"sam_config": SAM | {"downsample_channels": [WIDTH, WIDTH]}}
    vision["encoder_config"] = {"image_size": EDGE, "patch_size": 4 * PATCH}
    text = {"num_key_value_heads": HEADS, "n_shared_experts": 1}  # its eager attention does not repeat key heads
    model = tiny(name, attention, text_config=text, vision_config=vision)
    note = (
        "all layers are reference_sliding_attention: a token sees the whole prompt and the last sliding_window tokens; "
        "generate() tells each cache layer the prompt's length beforehand, one mask serves all layers; "
        "its features hold a newline after each row of the grid and a separator at the end"
    )
    return Case(model=model, image=square(4 * (4 + 1) + 1, EDGE), note=note)


@family("step3p7")
def step3p7(name, attention):
    size = 48
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = {
        "layer_types": ["full_attention", "sliding_attention"] * 3,
        "mlp_layer_types": ["dense", *["sparse"] * 5],
        "rope_parameters": {"full_attention": rope | {"partial_rotary_factor": 0.5}, "sliding_attention": rope},
        "num_sliding_attention_heads": 2 * HEADS,
        "sliding_window": 16,
        "share_expert_dim": 16,
    }
    tower = {"image_size": size, "mlp_ratio": 2.0}
    model = tiny(name, attention, text_config=text, vision_config=tower)
    note = "full and sliding layers differ in heads and in rotary angles; bidirectional if use_bidirectional_attention"
    return Case(model=model, image=square((size // PATCH // 4) ** 2, size), note=note)


@family("molmo2")
def molmo2(name, attention):
    """A token is pooled from 2 x 2 patches; a column token ends each row; these and the marks see all others, too."""
    edge, column = SIZE // PATCH // 2, 125
    pooled = torch.arange(PATCHES).view(edge, 2, edge, 2).transpose(1, 2).reshape(POOLED, 4)
    text = {
        "additional_vocab_size": 0,
        "rope_scaling_layers": [1, 3, 5],
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    }
    tower = {"image_size": [SIZE, SIZE], "num_position_embeddings": PATCHES}
    adapter = {"vision_feature_layer": [1, 0], "text_hidden_size": WIDTH}
    parts = {"text_config": text, "vision_config": tower, "adapter_config": adapter}
    model = tiny(name, attention, image_patch_id=IMAGE, low_res_image_start_token_id=START, **parts)

    def image(number, generator):
        pixels = torch.randn(1, PATCHES, 3 * PATCH * PATCH, generator=generator)
        tensors = {"pixel_values": pixels, "image_grids": torch.tensor([[edge, edge, 0, 0]])}
        return Picture([START, *[*[IMAGE] * edge, column] * edge, END], tensors)

    def finish(inputs):
        """The types, and which patches of all images of the batch are pooled to each token."""
        parts_of_images = torch.tensor([IMAGE, START, END, column])
        inputs["mm_token_type_ids"] = torch.isin(inputs["input_ids"], parts_of_images).long()
        if "pixel_values" in inputs:
            inputs["image_token_pooling"] = torch.cat(
                [pooled + n * PATCHES for n in range(len(inputs["pixel_values"]))]
            )
        return inputs

    note = (
        "visual tokens of ALL images of a row see each other; features are added to the placeholders' embeddings; the "
        "decoder gets a mask with four dimensions; rotary angles of two kinds, chosen by the decoder's rope_types"
    )
    return Case(
        model=model,
        image=image,
        types="mm_token_type_ids",
        finish=finish,
        bidirectional=True,
        contiguous=False,
        note=note,
    )
