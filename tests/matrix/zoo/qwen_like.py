"""Qwen's models: images of any size as flattened patches, 2 x 2 of them per token; positions with three axes."""

from __future__ import annotations

import torch

from . import END, HEAD_DIM, IMAGE, LAYERS, PATCH, START, VIDEO, WIDTH, Case, Picture, family, tiny

GRIDS = [(8, 12), (12, 4), (8, 8)]  # patches (height, width) of the images of a row
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
INTERLEAVED = MROPE | {"mrope_interleaved": True}
PATCH_VALUES = 3 * 2 * PATCH * PATCH  # channels x frames x pixels


def patches(number, generator, values=PATCH_VALUES):
    height, width = GRIDS[number % len(GRIDS)]
    pixels = torch.randn(height * width, values, generator=generator)
    tensors = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}
    return Picture([START, *[IMAGE] * (height * width // 4), END], tensors)


def frames(number, generator, values=PATCH_VALUES):
    """A video of two (pairs of) frames of 8 x 6 patches."""
    pixels = torch.randn(2 * 8 * 6, values, generator=generator)
    tensors = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[2, 8, 6]])}
    return Picture([START, *[VIDEO] * 24, END], tensors, kind=2)


def timestamped(number, generator, values=PATCH_VALUES):
    """The same video, each frame a group of its own with text before it."""
    one = frames(number, generator, values)
    one.ids = [START, *[VIDEO] * 12, END, 50, START, *[VIDEO] * 12, END]
    return one


@family("qwen2_vl", "qwen2_5_vl")
def qwen2_vl(name, attention):
    model = tiny(name, attention, text_config={"rope_parameters": MROPE})
    return Case(model=model, image=patches, video=frames, types="mm_token_type_ids")


@family("qwen2_5_omni_thinker")
def qwen2_5_omni(name, attention):
    def timed(number, generator):
        one = frames(number, generator)
        one.tensors["video_second_per_grid"] = torch.tensor([1.0])
        return one

    model = tiny(name, attention, text_config={"rope_parameters": MROPE}, vision_start_token_id=START)
    decoder = "model.language_model" if hasattr(model.model, "language_model") else "model"  # transformers 5.17
    return Case(model=model, image=patches, video=timed, decoder=decoder)


@family("qwen3_vl", "qwen3_vl_moe")
def qwen3_vl(name, attention):
    rope, deepstack = {"rope_parameters": INTERLEAVED}, {"deepstack_visual_indexes": [0, 1]}
    model = tiny(name, attention, text_config=rope, vision_config=deepstack)
    return Case(model=model, image=patches, video=timestamped, types="mm_token_type_ids", deepstack=True)


@family("qwen3_5", "qwen3_5_moe")
def qwen3_5(name, attention):
    """Every other decoder layer is linear attention; rotary angles cover half of a head."""
    text = {"head_dim": 16, "rope_parameters": INTERLEAVED | {"partial_rotary_factor": 0.5}}
    model = tiny(name, attention, text_config=text)
    return Case(model=model, image=patches, video=timestamped, types="mm_token_type_ids")


@family("cosmos3_omni", "cohere_compass")
def with_deepstack(name, attention):
    """Cohere's full attention layers have no rotary angles, its sliding ones have."""
    text = {"rope_parameters": INTERLEAVED}
    if name == "cohere_compass":
        text = {"rope_parameters": {"sliding_attention": INTERLEAVED, "full_attention": None}}
        text["layer_types"] = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    model = tiny(name, attention, text_config=text, vision_config={"deepstack_visual_indexes": [0, 1]})
    return Case(model=model, image=patches, video=timestamped, types="mm_token_type_ids", deepstack=True)


@family("cosmos3_edge")
def cosmos3_edge(name, attention):
    model = tiny(
        name,
        attention,
        text_config={"rope_parameters": INTERLEAVED},
        vision_config={"num_patches": 64},
        projector_hidden_size=64,
    )

    def image(number, generator):
        return patches(number, generator, PATCH_VALUES // 2)

    return Case(model=model, image=image, types="mm_token_type_ids")


@family("exaone4_5", "hyperclovax_vision_v2")
def one_axis(name, attention):
    """The same patches before decoders whose positions have one axis."""
    return Case(model=tiny(name, attention), image=patches, video=frames)


@family("ernie4_5_vl_moe")
def ernie(name, attention):
    """Text and images have experts of their own."""
    text = {"moe_k": 2, "moe_num_experts": 4, "moe_intermediate_size": [16, 16], "mlp_layer_types": None}
    text["rope_parameters"] = MROPE | {"mrope_section": [1, 1, 2]}
    model = tiny(name, attention, text_config=text)

    def image(number, generator):
        return patches(number, generator, PATCH_VALUES // 2)

    return Case(model=model, image=image, types="mm_token_type_ids")


@family("hunyuan_vl")
def hunyuan(name, attention):
    """An image's tokens: a beginning, rows that each end with a newline, an end; all of them placeholders."""

    def image(number, generator):
        one = patches(number, generator, PATCH_VALUES // 2)
        _, height, width = one.tensors["image_grid_thw"][0].tolist()
        one.ids = [START, *[IMAGE] * (height // 2 * (width // 2 + 1) + 2), END]
        return one

    text = {"head_dim": HEAD_DIM, "rope_parameters": MROPE | {"mrope_section": [1, 1, 1, 1]}}
    model = tiny(name, attention, text_config=text, vision_config={"text_hidden_size": WIDTH})
    note = "an axis of the positions counts the images of the whole batch: a row's logits depend on the rows before it"
    return Case(model=model, image=image, types="mm_token_type_ids", batches=False, note=note)
