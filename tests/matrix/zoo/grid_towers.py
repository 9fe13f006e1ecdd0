"""Towers that, as Qwen's, take images of any size as patches and grids (frames, height, width), before other decoders.

Latent keys (Kimi), an indexer that chooses keys (MiniMax-M3, Qwen4), sliding windows (Muse, LFM3), convolutions (LFM3),
streams of hidden states (Qwen4).
"""

from __future__ import annotations

import math

import torch
import transformers
from packaging.version import Version

from . import AUDIO, PATCH, START, STD, VIDEO, WIDTH, Case, family, tiny
from .qwen_like import INTERLEAVED, MROPE, frames, patches, timestamped

AUDIO_START = 125
COUNTS_FRAMES_ONCE = Version("5.24")  # Kimi's videos: 5.17 expects tokens for each frame and fails
SQUARE = (3, PATCH, PATCH)  # channels, height and width of a patch


def shaped(picture, shape, **more):
    """`picture` with patches of this shape, and `more` inputs for each image."""

    def make(number, generator):
        one = picture(number, generator, math.prod(shape))
        pixels = next(iter(one.tensors))
        one.tensors[pixels] = one.tensors[pixels].view(-1, *shape)
        one.tensors |= more
        return one

    return make


@family("video_llama_3")
def video_llama_3(name, attention):
    flat, merge = (math.prod(SQUARE),), torch.tensor([2])
    image, video = shaped(patches, flat, image_merge_sizes=merge), shaped(frames, flat, video_merge_sizes=merge)
    return Case(model=tiny(name, attention), image=image, video=video)


@family("paddleocr_vl")
def paddleocr_vl(name, attention):
    model = tiny(name, attention, text_config={"rope_parameters": MROPE})
    return Case(model=model, image=shaped(patches, SQUARE), types="mm_token_type_ids")


@family("kimi_k25")
def kimi_k25(name, attention):
    def averaged(number, generator):
        """The frames of a video are averaged: 4 x 4 patches give 4 tokens."""
        one = shaped(frames, SQUARE)(number, generator)
        one.ids = [VIDEO] * 12
        return one

    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
    tower = {"pos_emb_height": 8, "pos_emb_width": 8}
    model = tiny(name, attention, text_config=latent | groups, vision_config=tower, projection_hidden_size=WIDTH)
    note = "the cache's keys are latents and its values the rotary part of the keys; placeholders are embedded as id 0"
    video = averaged if Version(transformers.__version__) >= COUNTS_FRAMES_ONCE else None
    return Case(model=model, image=shaped(patches, SQUARE), video=video, note=note)


@family("minimax_m3_vl")
def minimax_m3_vl(name, attention):
    text = {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 3,
        "mlp_layer_types": ["dense", *["sparse"] * 5],
        "dense_intermediate_size": 64,
        "shared_intermediate_size": 16,
        "rotary_dim": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    }
    model = tiny(name, attention, text_config=text, projector_hidden_size=WIDTH)
    note = (
        "sparse layers choose blocks of neighbours in the cache with an indexer that caches keys of its own; they "
        "compare position_ids with indices of the cache, so padding on the left and missing entries change the blocks"
    )
    return Case(model=model, image=patches, video=frames, batches=False, note=note)


@family("muse_glimmer", "muse_spark")
def muse(name, attention):
    """Sliding layers with rotary angles, every third layer full and without; audio in Muse Spark."""
    full = [n in (2, 5) for n in range(8)]
    text = {
        "num_hidden_layers": len(full),
        "layer_types": ["full_attention" if each else "sliding_attention" for each in full],
        "layer_rope_theta": [0 if each else 10000.0 for each in full],
        "output_multiplier": 1.0,
    }
    tower = {"pos_emb_height": 8, "pos_emb_width": 8}
    sizes = {"projector_hidden_size": WIDTH, "out_hidden_size": 4 * WIDTH}
    if name == "muse_spark":
        # With its own factors a random model is chaotic: attention kernels differ by more than 1e-3.
        text |= {"qk_scale_factor": 1.0, "residual_gate_temperature": 1.0}
        text |= {"mlp_layer_types": ["sparse", "dense"] * 4, "moe_hidden_size": 16}
        audio = {"patch_sizes": [4, 4], "hidden_sizes": [8, 8], "depths": [1, 1], "num_hidden_layers": 2}
        sizes["audio_config"] = audio | {"out_hidden_size": WIDTH, "initializer_range": STD}
    model = tiny(name, attention, text_config=text, vision_config=tower, **sizes)
    note = "full layers get position_embeddings=None; placeholders are embedded as id 0"
    return Case(model=model, image=patches, video=frames, note=note)


@family("lfm3_vl")
def lfm3_vl(name, attention):
    tower = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_key_value_heads": 2}
    model = tiny(name, attention, vision_config=tower, projector_hidden_size=WIDTH)
    note = (
        "rotary angles of their own for full and for sliding layers, none for convolutions; last norm: embedding_norm"
    )
    return Case(model=model, image=patches, video=frames, note=note)


@family("qwen3_omni_moe_thinker")
def qwen3_omni(name, attention):
    text = {"rope_parameters": INTERLEAVED, "sliding_window": None}
    tower = {"depth": 4, "deepstack_visual_indexes": [0, 1, 2]}  # added after the decoder's layers 0, 1 and 2
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 8}
    audio |= {"downsample_hidden_size": 8, "output_dim": WIDTH, "max_source_positions": 16}
    ids = {"vision_start_token_id": START, "audio_start_token_id": AUDIO_START, "audio_token_id": AUDIO}
    model = tiny(name, attention, text_config=text, vision_config=tower, audio_config=audio, **ids)
    return Case(
        model=model,
        image=patches,
        video=shaped(frames, (2 * math.prod(SQUARE),), video_second_per_grid=torch.ones(1)),
        decoder="model.language_model" if hasattr(model.model, "language_model") else "model",
        deepstack=True,
        note="positions come from the ids of placeholders and of vision_start_token_id",
    )


@family("qwen4_exp")
def qwen4_exp(name, attention):
    """An indexer with few heads gives ties of zeros, which kernels break in different ways."""
    text = {
        "rope_parameters": MROPE,
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1, 5],
        "ple_embed_dim": 16,
        "ngram_size": 3,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 4,
        "split_ngram_parts": 1,
    }
    model = tiny(name, attention, text_config=text | {"eos_token_id": 2})
    return Case(
        model=model,
        image=patches,
        video=timestamped,
        types="mm_token_type_ids",
        per_layer_inputs=True,
        note="hidden states between layers are hc_count streams wide; hyper_connection_mixer replaces the last norm; "
        "angles of indexed layers cover the cache, too; some layers embed n-grams of ple_input_ids",
    )
