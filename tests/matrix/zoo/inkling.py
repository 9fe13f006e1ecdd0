"""Inkling: relative positions and convolutions in each layer, sliding and full attention in turn."""

from __future__ import annotations

import torch

from . import HEAD_DIM, HEADS, IMAGE, VOCABULARY, Case, Picture, family, tiny

BLOCK = 8  # pixels along an edge of what becomes one token
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
        tokens = 6 + 2 * (number % 2)
        return Picture([IMAGE] * tokens, {"pixel_values": torch.randn(tokens, 2, BLOCK, BLOCK, 3, generator=generator)})

    text = TEXT | {"logits_mup_width_multiplier": 1.0}
    vision = {"patch_size": BLOCK, "num_hidden_layers": 2}
    return Case(model=tiny(name, attention, text_config=text, vision_config=vision), image=image)
