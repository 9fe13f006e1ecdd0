"""Shapes, construction and the LLaVA-format export of the tiny model (CLIP tower, two-layer projector, Llama)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dev.tiny import attention
from dev.tiny.codes import basis, word_directions

WIDTH, LAYERS, HEADS, MLP = 128, 6, 4, 384
TOWER_WIDTH, TOWER_LAYERS, TOWER_HEADS, TOWER_MLP = 128, 4, 4, 384
IMAGE_PX, PATCH_PX = 336, 14
SELECT_LAYER = -2
TOWER_NAME = "clip-vit-tiny-patch14-336"
CONTEXT = 2048
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class TinyLlava(nn.Module):
    """Tower, projector and language model under the names of LLaVA's checkpoints."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=TOWER_WIDTH,
                intermediate_size=TOWER_MLP,
                num_hidden_layers=TOWER_LAYERS,
                num_attention_heads=TOWER_HEADS,
                image_size=IMAGE_PX,
                patch_size=PATCH_PX,
                projection_dim=TOWER_WIDTH,
                attn_implementation=attention.NAME,
            )
        )
        self.projector = nn.Sequential(nn.Linear(TOWER_WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=WIDTH,
                intermediate_size=MLP,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                max_position_embeddings=CONTEXT,
                rms_norm_eps=1e-5,
                tie_word_embeddings=False,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                attn_implementation=attention.NAME,
            )
        )

    def image_features(self, pixels: torch.Tensor, patches: torch.Tensor | None = None) -> torch.Tensor:
        """What the language model sees: float [B, 3, H, W] -> [B, N, WIDTH], N patches in row order.

        `patches` int64 [B, N]: where the patches lie in the whole image, for windows; None for whole images.
        """
        tower = getattr(self.tower, "vision_model", self.tower)
        embeddings = tower.embeddings
        seen = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if patches is None:
            patches = torch.arange(seen.shape[1], device=seen.device).expand(len(seen), -1)
        summary = embeddings.class_embedding.expand(len(seen), 1, -1)
        places = torch.cat([torch.zeros_like(patches[:, :1]), patches + 1], 1)
        hidden = tower.pre_layrnorm(torch.cat([summary, seen], 1) + embeddings.position_embedding(places))
        for layer in tower.encoder.layers[: SELECT_LAYER + 1]:
            out = layer(hidden, None)
            hidden = out[0] if isinstance(out, tuple) else out
        return self.projector(hidden[:, 1:])

    @torch.no_grad()
    def share_words(self, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        """Start the word embeddings (in and out) of colours, shapes and digits at the patches' directions."""
        directions = basis(WIDTH)
        for embedding in (self.llm.model.embed_tokens.weight, self.llm.lm_head.weight):
            embedding.normal_(0, WIDTH**-0.5)
            for piece, k in word_directions().items():
                embedding[tokenizer.piece_to_id(piece)] = directions[k]


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _llava_config(vocab_size: int) -> dict:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "use_cache": True,
        "torch_dtype": "float16",
        "image_aspect_ratio": "pad",
        "mm_vision_tower": TOWER_NAME,
        "mm_hidden_size": TOWER_WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": SELECT_LAYER,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "unfreeze_mm_vision_tower": False,
        "tokenizer_padding_side": "right",
    }


def _tokenizer_config() -> dict:
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "padding_side": "right",
        "sp_model_kwargs": {},
    }


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    save_file(
        {k: v.detach().half().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata={"format": "pt"}
    )
    os.replace(temporary, path)


def export(
    model: TinyLlava,
    tokenizer_model: bytes,
    folder: Path,
    newline: torch.Tensor | None = None,
    pinpoints: list[list[int]] | None = None,
) -> None:
    """Write the checkpoint in LLaVA's original layout, float16, the tower in its own folder below.

    newline [WIDTH] and pinpoints make it LLaVA-NeXT's (anyres, spatial_unpad).
    """
    tower = folder / TOWER_NAME
    tower.mkdir(parents=True, exist_ok=True)
    weights = {k: v for k, v in model.llm.state_dict().items() if not k.endswith("inv_freq")}
    weights |= {f"model.mm_projector.{k}": v for k, v in model.projector.state_dict().items()}
    config = _llava_config(weights["lm_head.weight"].shape[0])
    if newline is not None:
        weights["model.image_newline"] = newline
        config |= {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": pinpoints,
            "mm_patch_merge_type": "spatial_unpad",
        }
    _save_tensors(weights, folder / "model.safetensors")
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(
        folder / "special_tokens_map.json",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
    )
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    vision = {
        k if k.startswith("vision_model.") else f"vision_model.{k}": v for k, v in model.tower.state_dict().items()
    }
    _save_tensors({k: v for k, v in vision.items() if not k.endswith("position_ids")}, tower / "model.safetensors")
    tower_config = model.tower.config
    _write_json(
        tower / "config.json",
        {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "torch_dtype": "float16",
            **{
                k: getattr(tower_config, k)
                for k in [
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_channels",
                    "image_size",
                    "patch_size",
                    "projection_dim",
                    "hidden_act",
                    "layer_norm_eps",
                    "attention_dropout",
                    "initializer_factor",
                    "initializer_range",
                ]
            },
        },
    )
    _write_json(
        tower / "preprocessor_config.json",
        {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "do_resize": True,
            "size": IMAGE_PX,
            "resample": 3,
            "do_center_crop": True,
            "crop_size": IMAGE_PX,
            "do_normalize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
