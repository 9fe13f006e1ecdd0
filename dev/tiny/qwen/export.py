"""A trained tiny Qwen model in the published layout: flat config, bfloat16, processor, chat template."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from dev.tiny.model import CLIP_MEAN, CLIP_STD, CONTEXT, HEADS, LAYERS, MLP, WIDTH
from dev.tiny.qwen import model as shapes
from dev.tiny.qwen.model import TinyQwen
from dev.tiny.qwen.pictures import MAX_TOKENS, MIN_TOKENS
from dev.tiny.qwen.tokenizer import SPECIALS, SYSTEM, vocabulary_files

NAMES = {"net.model.visual.": "visual.", "net.model.language_model.": "model.", "net.lm_head.": "lm_head."}
IDS = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _config(family: str, tokenizer: Tokenizer) -> dict:
    token = tokenizer.token_to_id
    vision = {
        "depth": shapes.TOWER_LAYERS,
        "num_heads": shapes.TOWER_HEADS,
        "in_chans": 3,
        "patch_size": shapes.PATCH_PX,
        "spatial_merge_size": shapes.MERGE,
        "spatial_patch_size": shapes.PATCH_PX,
        "temporal_patch_size": shapes.TEMPORAL,
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": shapes.TOWER_WIDTH, "hidden_size": WIDTH, "mlp_ratio": shapes.TOWER_MLP_RATIO}
        kind = "Qwen2VLForConditionalGeneration"
    else:
        vision |= {
            "hidden_size": shapes.TOWER_WIDTH,
            "out_hidden_size": WIDTH,
            "intermediate_size": shapes.TOWER_GATED_MLP,
            "window_size": shapes.WINDOW_PX,
            "fullatt_block_indexes": shapes.WHOLE_LAYERS,
            "hidden_act": "silu",
            "tokens_per_second": shapes.PACES[family],
        }
        kind = "Qwen2_5_VLForConditionalGeneration"
    return {
        "architectures": [kind],
        "model_type": family,
        "attention_dropout": 0.0,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        **{f"{name}_token_id": token(f"<|{special}|>") for name, special in IDS.items()},
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "max_position_embeddings": CONTEXT,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": shapes.ROPE_THETA,
        "rope_scaling": {"type": "mrope", "mrope_section": shapes.MROPE_SECTION},
        "sliding_window": CONTEXT,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vision_config": vision,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def _tokenizer_config(tokenizer: Tokenizer) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokenizer.token_to_id(name)): {"content": name, **flags} for name in SPECIALS},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": CONTEXT,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        "chat_template": TEMPLATE,
    }


def _preprocessor_config(family: str) -> dict:
    return {
        "min_pixels": MIN_TOKENS * shapes.TOKEN_PX**2,
        "max_pixels": MAX_TOKENS * shapes.TOKEN_PX**2,
        "patch_size": shapes.PATCH_PX,
        "temporal_patch_size": shapes.TEMPORAL,
        "merge_size": shapes.MERGE,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor" if family == "qwen2_vl" else "Qwen2_5_VLProcessor",
    }


def export(model: TinyQwen, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint; each file is replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    family = model.family
    generation = {
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "do_sample": False,
        "eos_token_id": [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")],
    }
    files = {
        "config.json": _config(family, tokenizer),
        "generation_config.json": generation,
        "tokenizer_config.json": _tokenizer_config(tokenizer),
        "preprocessor_config.json": _preprocessor_config(family),
        "chat_template.json": {"chat_template": TEMPLATE},
    }
    texts = {name: json.dumps(value, indent=2) + "\n" for name, value in files.items()}
    texts |= {"tokenizer.json": tokenizer.to_str(pretty=True), **vocabulary_files(tokenizer)}
    for name, text in texts.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
    temporary = folder / ".model.safetensors.tmp"
    save_file(_published(model), temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")


def _published(model: TinyQwen) -> dict[str, torch.Tensor]:
    """The weights under the published names."""
    out = {}
    for key, value in model.state_dict().items():
        old = next(name for name in NAMES if key.startswith(name))
        out[NAMES[old] + key.removeprefix(old)] = value.detach().to(torch.bfloat16).cpu().contiguous()
    return out
