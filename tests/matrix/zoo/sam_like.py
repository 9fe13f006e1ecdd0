"""Models with SAM's tower: GOT-OCR 2, DeepSeek-VL's hybrid, DeepSeek-OCR 2."""

from __future__ import annotations

import torch

from . import LAYERS, PATCH, SIZE, WIDTH, Case, family, square, tiny

EDGE = 64  # pixels of SAM's images; 4 x 4 tokens after two halvings
SAM = {"image_size": EDGE, "output_channels": WIDTH, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 64}
QUERIES = 144  # of DeepSeek-OCR 2, fixed in its code, and a separator


@family("got_ocr2")
def got_ocr2(name, attention):
    return Case(model=tiny(name, {"text_config": attention}, vision_config=SAM), image=square(16, EDGE))


@family("deepseek_vl_hybrid")
def deepseek_vl_hybrid(name, attention):
    """Two towers see the same image in two sizes."""

    def image(number, generator):
        one = square((SIZE // PATCH) ** 2)(number, generator)
        one.tensors["high_res_pixel_values"] = torch.randn(1, 3, EDGE, EDGE, generator=generator)
        return one

    return Case(model=tiny(name, attention, high_res_vision_config=SAM), image=image)


@family("deepseek_ocr2")
def deepseek_ocr2(name, attention):
    vision = {"sam_config": SAM | {"downsample_channels": [WIDTH, WIDTH]}}
    text = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    text["mlp_layer_types"] = ["dense"] + ["sparse"] * (LAYERS - 1)
    model = tiny(name, attention, vision_config=vision, text_config=text)
    return Case(model=model, image=square(QUERIES + 1, EDGE))
