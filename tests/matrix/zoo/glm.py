"""GLM's vision-language models: patches as in Qwen2-VL; a video's tokens are image tokens, each frame a group."""

from __future__ import annotations

from . import END, IMAGE, START, Case, family, tiny
from .qwen_like import MROPE, frames, patches

MARKS = {"video_start_token_id": 125, "video_end_token_id": 126}


def video(number, generator):
    one = frames(number, generator)
    one.ids = [125, START, *[IMAGE] * 12, END, 50, START, *[IMAGE] * 12, END, 126]
    return one


@family("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr")
def glm4v(name, attention):
    text = {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}}
    if name == "glm4v_moe":
        text["first_k_dense_replace"] = 1
    model = tiny(name, attention, text_config=text, **MARKS)
    return Case(
        model=model, image=patches, video=video, types="mm_token_type_ids", note="video tokens have image_token_id"
    )
