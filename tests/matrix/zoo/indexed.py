"""Decoders with latent attention and an indexer that picks the keys of each token: GLM 5, Hunyuan 4, Dots 3."""

from __future__ import annotations

from . import END, HEAD_DIM, HEADS, IMAGE, PATCH, START, WIDTH, Case, family, tiny
from .glm import MARKS
from .qwen_like import MROPE, patches

LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": HEAD_DIM,
    "qk_rope_head_dim": HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "num_key_value_heads": HEADS,
}
INDEXER = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 16}


@family("glm5_next")
def glm5_next(name, attention):
    """Linear attention and indexed attention in turn, no rotary angles, several residual streams."""
    text = LATENT | INDEXER | {"qk_rope_head_dim": 0, "index_kpool": 4, "hc_mult": 2}
    text |= {"linear_head_dim": HEAD_DIM, "linear_num_heads": HEADS}
    model = tiny(name, attention, text_config=text, vision_config={"projection_intermediate_size": 64}, **MARKS)
    return Case(model=model, image=patches)


@family("hy_v4_vl")
def hy_v4_vl(name, attention):
    """Each row of an image's tokens ends with a newline, a placeholder, too; several residual streams."""

    def image(number, generator):
        one = patches(number, generator, 3 * PATCH * PATCH)
        _, height, width = one.tensors["image_grid_thw"][0].tolist()
        one.ids = [START, *[IMAGE] * (height // 2 * (width // 2 + 1)), END]
        return one

    text = LATENT | INDEXER | {"hc_mult": 2, "rope_parameters": MROPE}
    model = tiny(name, "eager", text_config=text)
    return Case(model=model, image=image, types="mm_token_type_ids", attentions=("eager",))


@family("dots3_note")
def dots3_note(name, attention):
    """Indexed and sliding attention in turn, each with sizes and angles of its own."""
    sliding = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16}
    sliding |= {"head_dim": 16, "qk_nope_head_dim": HEAD_DIM, "v_head_dim": HEAD_DIM}
    text = LATENT | INDEXER | {f"swa_{key}": value for key, value in sliding.items()}
    vision = {"mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4, "moe_intermediate_size": 16}
    adapter = {"adapter_out_dim": WIDTH}
    audio = adapter | {"adapter_input_size": WIDTH, "downsample_hidden_size": 8}
    model = tiny(
        name,
        attention,
        text_config=text,
        vision_config=vision | adapter | {"adapter_in_dim": WIDTH},
        audio_config=audio,
    )

    def image(number, generator):
        return patches(number, generator, 3 * PATCH * PATCH)

    return Case(model=model, image=image)
