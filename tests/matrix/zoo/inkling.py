"""Inkling: relative positions and convolutions in each layer, sliding and full attention in turn."""

from __future__ import annotations

import torch

from . import HEAD_DIM, HEADS, IMAGE, VOCABULARY, WIDTH, Case, Picture, family, tiny

BLOCK = 8  # pixels along an edge of what becomes one token
NOTE = "each layer convolves over the tokens before it: those left out are missing in that, too"
TEXT = {
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": HEAD_DIM,
    "sliding_window_size": 16,
    "d_rel": 4,
    "rel_extent": 64,
    "unpadded_vocab_size": VOCABULARY,
}


@family("inkling_mm_model")
def inkling(name, attention):
    """No tower: blocks of two frames are folded into one token each."""

    def image(number, generator):
        tokens = 16 + 4 * (number % 2)
        return Picture([IMAGE] * tokens, {"pixel_values": torch.randn(tokens, 2, BLOCK, BLOCK, 3, generator=generator)})

    text = TEXT | {"logits_mup_width_multiplier": 1.0}
    vision = {"patch_size": BLOCK, "num_hidden_layers": 5}
    return Case(model=tiny(name, attention, text_config=text, vision_config=vision), image=image, note=NOTE)


@family("inkling2", "inkling2_loop")
def inkling2(name, attention):
    def image(number, generator):
        height, width = 4 + number % 2, 4
        pixels = torch.randn(height * width, BLOCK, BLOCK, 3, generator=generator)
        return Picture(
            [IMAGE] * (height * width), {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}
        )

    text = TEXT | {"n_layers_per_attn_res_block": 2}
    if name == "inkling2_loop":
        text |= {"loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 3, "loop_gate_rank": 8}
    note = NOTE + ("; layers 2 and 3 run three times per forward" if name == "inkling2_loop" else "")
    vision = {"patch_size": BLOCK // 2, "posemb_grid_size": 8, "projection_hidden_dim": 64, "text_hidden_size": WIDTH}
    return Case(
        model=tiny(name, "eager", text_config=text, vision_config=vision), image=image, attentions=("eager",), note=note
    )
