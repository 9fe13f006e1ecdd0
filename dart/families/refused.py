"""Families that cannot be pruned, each with its reason. docs/families.md lists them beside the others."""

from __future__ import annotations

from dart.families.base import Family, register

CROSS = "its language model reads images by cross-attention: no token of the decoder is visual"
ENCODER = "an encoder reads the image and a decoder attends to it: no token of the decoder is visual"
NO_IDS = "`input_ids` hold no placeholder tokens, so that nobody can tell which tokens are visual"
INDEXED = "its attention looks keys up through an index of blocks or tokens, which counts the cache's slots"
STREAMS = "its layers carry several streams of hidden states at once"
CONVOLVED = "its attention mixes neighbouring tokens by convolutions or a table of distances between all tokens"
NO_LOGITS = "it does not write text token by token"

REASONS = {
    CROSS: ("blip", "evolla", "idefics", "mllama"),
    ENCODER: ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"),
    NO_IDS: ("git", "kosmos-2", "kosmos-2.5", "instructblipvideo"),
    INDEXED: ("dots3_note", "glm5_next", "hy_v4_vl", "minimax_m3_vl"),
    STREAMS: ("gemma3n", "qwen4_exp"),
    CONVOLVED: ("inkling2", "inkling2_loop", "inkling_mm_model"),
    NO_LOGITS: ("diffusion_gemma", "pi0"),
}

for _reason, _types in REASONS.items():
    register(*_types)(type("Refused", (Family,), {"refused": _reason}))
