"""Towers that take images of any size as one list of patches and their grids (frames, height, width in patches).

Two by two patches make a token. Decoders of all kinds follow: Qwen2 and ERNIE, latent keys (Kimi), sparse attention chosen by
an indexer (MiniMax-M3, Qwen4), sliding windows (Muse), convolutions and windows (LFM3), linear attention (MiniCPM-OCR).
"""

from __future__ import annotations

import torch

from . import END, IMAGE, PATCH, START, STD, VIDEO, WIDTH, Case, Picture, family, tiny

GRIDS = [(4, 6), (6, 2), (4, 4)]  # patches (height, width) of the images of a row
FRAMES, EDGE = 2, 4  # frames of a video and patches along their edges
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
FLAT = (3 * PATCH * PATCH,)  # values of a patch
FLAT_PAIRS = (2 * 3 * PATCH * PATCH,)  # of a patch of two frames
SQUARE = (3, PATCH, PATCH)


def patches(shape, **more):
    """Images of patches of this shape; `more` are further inputs, one row an image."""

    def image(number, generator):
        height, width = GRIDS[number % len(GRIDS)]
        pixels = torch.randn(height * width, *shape, generator=generator)
        grid = torch.tensor([[1, height, width]])
        ids = [START, *[IMAGE] * (height * width // 4), END]
        return Picture(ids, {"pixel_values": pixels, "image_grid_thw": grid} | more)

    return image


def frames(shape, groups=1, tokens=FRAMES * EDGE * EDGE // 4, **more):
    """Videos of patches of this shape: `tokens` tokens each, in `groups` groups (of frames) with text between them."""

    def video(number, generator):
        pixels = torch.randn(FRAMES * EDGE * EDGE, *shape, generator=generator)
        grid = torch.tensor([[FRAMES, EDGE, EDGE]])
        ids = [START, *[VIDEO] * (tokens // groups), END] * groups
        return Picture(ids, {"pixel_values_videos": pixels, "video_grid_thw": grid} | more, kind=2)

    return video


@family("video_llama_3")
def video_llama_3(name, attention):
    merge = torch.tensor([2])
    return Case(
        model=tiny(name, attention),
        image=patches(FLAT, image_merge_sizes=merge),
        video=frames(FLAT, video_merge_sizes=merge),
    )


@family("paddleocr_vl")
def paddleocr_vl(name, attention):
    model = tiny(name, attention, text_config={"rope_parameters": MROPE})
    return Case(model=model, image=patches(SQUARE), types="mm_token_type_ids")


@family("kimi_k25")
def kimi_k25(name, attention):
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
    model = tiny(
        name,
        attention,
        text_config=latent | groups,
        vision_config={"pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=WIDTH,
    )
    tokens = EDGE * EDGE // 4  # the frames of a video are averaged
    note = "caches the latent (no heads) as keys and the rotary part of the keys as values; placeholders are embedded as id 0"
    return Case(model=model, image=patches(SQUARE), video=frames(SQUARE, tokens=tokens), note=note)


@family("minimax_m3_vl")
def minimax_m3_vl(name, attention):
    index = {"index_n_heads": 2, "index_head_dim": 8, "index_block_size": 4, "index_topk_blocks": 2}
    layers = {"layer_types": ["full_attention", "minimax_m3_sparse"] * 3, "rotary_dim": 8}
    sizes = {
        "dense_intermediate_size": 64,
        "shared_intermediate_size": 16,
        "mlp_layer_types": ["dense", *["sparse"] * 5],
    }
    model = tiny(name, attention, text_config=index | layers | sizes, projector_hidden_size=WIDTH)
    note = (
        "sparse layers: an indexer with a cache of its own scores blocks of consecutive cache entries and compares "
        "position_ids with cache indices, so removing entries changes the blocks"
    )
    return Case(model=model, image=patches(FLAT_PAIRS), video=frames(FLAT_PAIRS), batches=False, note=note)


@family("muse_glimmer", "muse_spark")
def muse(name, attention):
    text = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"] * 2}
    text |= {
        "num_hidden_layers": 8,
        "layer_rope_theta": [10000.0, 10000.0, 0] * 2 + [10000.0] * 2,
        "output_multiplier": 1.0,
    }
    sizes = {"vision_config": {"pos_emb_height": 8, "pos_emb_width": 8}, "projector_hidden_size": WIDTH}
    sizes |= {"out_hidden_size": 4 * WIDTH}
    if name == "muse_spark":
        # Its own factors make a random model chaotic: attention kernels would differ by more than 1e-3.
        text |= {"qk_scale_factor": 1.0, "residual_gate_temperature": 1.0}
        text |= {"moe_hidden_size": 16, "mlp_layer_types": ["sparse", "dense"] * 4}
        audio = {"patch_sizes": [4, 4], "hidden_sizes": [8, 8], "depths": [1, 1], "num_hidden_layers": 2}
        sizes["audio_config"] = audio | {"out_hidden_size": WIDTH, "initializer_range": STD}
    note = "full-attention layers have no rotary angles: position_embeddings=None; placeholders are embedded as id 0"
    model = tiny(name, attention, text_config=text, **sizes)
    return Case(model=model, image=patches(FLAT_PAIRS), video=frames(FLAT_PAIRS), note=note)


@family("lfm3_vl")
def lfm3_vl(name, attention):
    tower = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_key_value_heads": 2}
    model = tiny(name, attention, vision_config=tower, projector_hidden_size=WIDTH)
    note = (
        "one pair of rotary angles for each kind of attention, none for convolutions; the final norm is embedding_norm"
    )
    return Case(model=model, image=patches(FLAT_PAIRS), video=frames(FLAT_PAIRS), note=note)


@family("qwen3_omni_moe_thinker")
def qwen3_omni(name, attention):
    text = {"rope_parameters": MROPE | {"mrope_interleaved": True}, "sliding_window": None}
    tower = {"depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 8}
    audio |= {"downsample_hidden_size": 8, "output_dim": WIDTH, "max_source_positions": 16}
    ids = {"vision_start_token_id": START, "audio_start_token_id": 125}
    model = tiny(name, attention, text_config=text, vision_config=tower, audio_config=audio, **ids)
    decoder = "model.language_model" if hasattr(model.model, "language_model") else "model"
    second = torch.ones(1)
    return Case(
        model=model,
        image=patches(FLAT_PAIRS),
        video=frames(FLAT_PAIRS, video_second_per_grid=second),
        decoder=decoder,
        deepstack=True,
        note="positions are found from the ids of the placeholders and vision_start_token_id",
    )


@family("qwen4_exp")
def qwen4_exp(name, attention):
    index = {"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 8}
    index |= {"indexer_budget": 16, "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8}
    ngrams = {"ple_layer_ids": [1, 5], "ple_embed_dim": 16, "ngram_size": 3, "heads_per_ngram": 2}
    ngrams |= {"ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 4, "split_ngram_parts": 1}
    model = tiny(name, attention, text_config=index | ngrams | {"rope_parameters": MROPE})
    note = (
        "hidden states between layers are hc_count streams wide; the last one is hyper_connection_mixer, there is no norm; "
        "position_embeddings of indexed layers cover the cache too; n-gram embeddings of the ids in chosen layers"
    )
    return Case(
        model=model,
        image=patches(FLAT_PAIRS),
        video=frames(FLAT_PAIRS, groups=FRAMES),
        types="mm_token_type_ids",
        per_layer_inputs=True,
        note=note,
    )
