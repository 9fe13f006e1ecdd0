"""Pixtral's tower before other decoders than Mistral's."""

from __future__ import annotations

from . import HEADS, Case, family, tiny
from .mistral import rows


@family("lighton_ocr")
def lighton_ocr(name, attention):
    return Case(model=tiny(name, attention), image=rows, contiguous=False)


def positions(inputs):
    """Those of a padded batch: forward() counts the padding, and the scale of attention depends on the position."""
    if not inputs["attention_mask"].all():
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return inputs


@family("mistral_large4")
def mistral_large4(name, attention):
    """An indexer with few heads gives ties of zeros, which kernels break in different ways."""
    text = {
        "num_key_value_heads": HEADS,
        "kv_lora_rank": 16,
        "v_head_dim": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "index_topk": 8,
        "index_head_dim": 8,
        "index_n_heads": 16,
        "indexer_types": ["full", "full", "shared"] * 2,
        "kv_source_layers": [0, 1, 1, 3, 4, 4],
    }
    model = tiny(name, attention, text_config=text)
    note = (
        "a layer returns (hidden states, indices of the keys it chose), gets those of the layer before and a dict "
        "with the latents that layers share; the cache has latents, rotary keys and the keys of indexers"
    )
    return Case(model=model, image=rows, contiguous=False, finish=positions, note=note)
