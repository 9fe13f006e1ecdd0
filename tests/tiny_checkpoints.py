"""Random checkpoints of transformers' families on disk: model, processor and chat template, from configs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

TOKENIZER = Path(__file__).parent / "golden" / "ckpt" / "qwen2-vl-tiny"
TEXT = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {"height": 24, "width": 24}
QWEN_IDS = {"image_token_id": 342, "video_token_id": 343, "vision_start_token_id": 339, "vision_end_token_id": 340}


def _tokenizer(**named: str) -> Any:
    return tf.AutoTokenizer.from_pretrained(TOKENIZER, **({"extra_special_tokens": named} if named else {}))


def _chat(image: str, video: str = "") -> str:
    return (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + image
        + "{% elif part['type'] == 'video' %}"
        + video
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )


def _saved(folder: Path, model: Any, config: Any, processor: Any) -> None:
    torch.manual_seed(0)
    model(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def qwen3_vl(folder: Path, head_dim: int = 8) -> None:
    sections = [head_dim // 4, head_dim // 8, head_dim // 8]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, "mrope_interleaved": True}
    vision = {"depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 14}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = TEXT | {"num_hidden_layers": 5, "head_dim": head_dim, "rope_parameters": rope}
    limits = {"shortest_edge": 4 * 28**2, "longest_edge": 400 * 28**2}
    chat = _chat("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
    processor = tf.Qwen3VLProcessor(
        tf.Qwen2VLImageProcessor(size=limits, patch_size=14, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        _tokenizer(),
        tf.Qwen3VLVideoProcessor(size=limits, patch_size=14),
        chat_template=chat,
    )
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    _saved(folder, tf.Qwen3VLForConditionalGeneration, config, processor)


def llava_onevision(folder: Path) -> None:
    """Squares of 6 x 6 patches."""
    tokens = _tokenizer(image_token="<image>", video_token="<video>")
    grid = [[24 * rows, 24 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    processor = tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=grid),
        tokens,
        tf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>", "<video>"),
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(image_size=24, patch_size=4, **VISION),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        video_token_id=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    _saved(folder, tf.LlavaOnevisionForConditionalGeneration, config, processor)


def internvl(folder: Path, **text: int) -> None:
    """Tiles of 6 x 6 patches, of which 2 x 2 become a token."""
    tokens = _tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    processor = tf.InternVLProcessor(
        tf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4),
        tokens,
        tf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=9,
        chat_template=_chat("<IMG_CONTEXT>", "<video>"),
    )
    config = tf.InternVLConfig(
        vision_config=VISION | {"image_size": [24, 24], "patch_size": [4, 4]},
        text_config={"model_type": "qwen2"} | TEXT | text,
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
    )
    _saved(folder, tf.InternVLForConditionalGeneration, config, processor)


def mistral3(folder: Path) -> None:
    """Patches of 6 x 6 pixels, 2 x 2 to a token, a separator after every row."""
    tokens = _tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    processor = tf.PixtralProcessor(
        tf.PixtralImageProcessor(size={"longest_edge": 60}, patch_size={"height": 6, "width": 6}),
        tokens,
        patch_size=6,
        spatial_merge_size=2,
        chat_template=_chat("[IMG]"),
    )
    config = tf.Mistral3Config(
        vision_config={"model_type": "pixtral", "image_size": 60, "patch_size": 6} | VISION,
        text_config={"model_type": "mistral"} | TEXT,
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    _saved(folder, tf.Mistral3ForConditionalGeneration, config, processor)


def pixtral(folder: Path, **text: int) -> None:
    """LLaVA with Pixtral's tower: patches of 6 x 6 pixels, a separator after every row."""
    tokens = _tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    processor = tf.PixtralProcessor(
        tf.PixtralImageProcessor(size={"longest_edge": 60}, patch_size={"height": 6, "width": 6}),
        tokens,
        patch_size=6,
        chat_template=_chat("[IMG]"),
    )
    config = tf.LlavaConfig(
        vision_config={"model_type": "pixtral", "image_size": 60, "patch_size": 6} | VISION,
        text_config={"model_type": "mistral"} | TEXT | text,
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    _saved(folder, tf.LlavaForConditionalGeneration, config, processor)


def idefics3(folder: Path) -> None:
    """Tiles of 6 x 6 patches, 2 x 2 to a token, names between the tiles."""
    tokens = _tokenizer(
        fake="<fake_token_around_image>", image_token="<image>", end="<end_of_utterance>", whole="<global-img>"
    )
    processor = tf.Idefics3Processor(
        tf.Idefics3ImageProcessor(size={"longest_edge": 48}, max_image_size={"longest_edge": 24}),
        tokens,
        image_seq_len=9,
        chat_template=_chat("<image>"),
    )
    config = tf.Idefics3Config(
        vision_config=VISION | {"image_size": 24, "patch_size": 4},
        text_config={"model_type": "llama"} | TEXT,
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    _saved(folder, tf.Idefics3ForConditionalGeneration, config, processor)


def gemma3(folder: Path) -> None:
    """Squares of 8 x 8 patches, pooled to 4 x 4."""
    tokens = _tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokens,
        image_seq_length=16,
        chat_template=_chat("<start_of_image>"),
    )
    config = tf.Gemma3Config(
        vision_config=VISION | {"image_size": 32, "patch_size": 4},
        text_config=TEXT | {"head_dim": 8},
        image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
        mm_tokens_per_image=16,
    )
    _saved(folder, tf.Gemma3ForConditionalGeneration, config, processor)
