"""Pixtral's tower (images of any size, 2 x 2 patches a token) before other decoders than Mistral's."""

from __future__ import annotations

import torch

from . import IMAGE, PATCH, Case, Picture, family, tiny

SIZES = [(24, 16), (8, 24), (16, 16)]  # pixels (height, width) of the images of a row


def sized(number, generator):
    height, width = SIZES[number % len(SIZES)]
    pixels = torch.randn(1, 3, height, width, generator=generator)
    tokens = height * width // (2 * PATCH) ** 2
    return Picture([IMAGE] * tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})


@family("lighton_ocr")
def lighton_ocr(name, attention):
    return Case(model=tiny(name, attention), image=sized)


def positions(inputs):
    """Positions of a padded batch: forward() counts the padding, and the scale of attention depends on the position."""
    if not inputs["attention_mask"].all():
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return inputs


@family("mistral_large4")
def mistral_large4(name, attention):
    latent = {
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "v_head_dim": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
    }
    index = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 16}  # few heads: ties of zeros
    shared = {"kv_source_layers": [0, 1, 1, 3, 4, 4], "indexer_types": ["full", "full", "shared"] * 2}
    model = tiny(name, attention, text_config=latent | index | shared)
    note = (
        "layers return (hidden states, indices of the chosen keys) and take the indices of the layer before, and a dict "
        "through which layers share latent keys; the cache holds latents and, apart, the indexer's keys"
    )
    return Case(model=model, image=sized, finish=positions, note=note)
