"""The tiny Qwen2-VL and Qwen2.5-VL: shapes, the tower on batches of equal images, the start from LLaVA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from dev.tiny import attention
from dev.tiny.model import CONTEXT, HEADS, LAYERS, MLP, WIDTH

PATCH_PX, MERGE, TEMPORAL = 14, 2, 2
TOKEN_PX = PATCH_PX * MERGE
TOWER_WIDTH, TOWER_LAYERS, TOWER_HEADS, TOWER_MLP_RATIO, TOWER_GATED_MLP = 128, 4, 4, 3, 256
WINDOW_PX, WHOLE_LAYERS = 112, [1, 3]
MROPE_SECTION = [4, 6, 6]  # of the 16 pairs of a head: time, height, width
# Width has the slowest pairs. With the tiny LLaVA's 10,000 they turn by 0.06 over an image, and left from right was
# not learned; with 100 by 1.1, and the carried-over layers get used to it.
ROPE_THETA = 100.0
FAMILIES = ("qwen2_vl", "qwen2_5_vl")
PACES = {"qwen2_vl": 1, "qwen2_5_vl": 2}  # positions between the moments of a video of two frames per second


def config_of(family: str, tokenizer: Tokenizer) -> Qwen2VLConfig | Qwen2_5_VLConfig:
    token = tokenizer.token_to_id
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": MROPE_SECTION},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "tie_word_embeddings": False,
    }
    vision = {"depth": TOWER_LAYERS, "num_heads": TOWER_HEADS, "patch_size": PATCH_PX, "spatial_merge_size": MERGE}
    if family == "qwen2_vl":
        kind: Any = Qwen2VLConfig
        vision |= {"embed_dim": TOWER_WIDTH, "hidden_size": WIDTH, "mlp_ratio": TOWER_MLP_RATIO}
    else:
        kind = Qwen2_5_VLConfig
        vision |= {"hidden_size": TOWER_WIDTH, "out_hidden_size": WIDTH, "intermediate_size": TOWER_GATED_MLP}
        vision |= {"window_size": WINDOW_PX, "fullatt_block_indexes": WHOLE_LAYERS}
        vision["tokens_per_second"] = PACES[family]
    return kind(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    """Frames float [B, 2, 3, H, W] -> [B, N, 3 * 2 * 14 * 14], four patches of a visual token side by side."""
    size, _, _, height, width = pixels.shape
    rows, columns = height // TOKEN_PX, width // TOKEN_PX
    cut = pixels.view(size, TEMPORAL, 3, rows, MERGE, PATCH_PX, columns, MERGE, PATCH_PX)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(size, rows * columns * MERGE**2, -1)


def places_of(rows: int, columns: int) -> torch.Tensor:
    """int64 [N, 2], each patch's (row, column), in the order of `patches_of`."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows * MERGE), torch.arange(columns * MERGE), indexing="ij"), -1)
    return grid.view(rows, MERGE, columns, MERGE, 2).transpose(1, 2).reshape(-1, 2)


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class TinyQwen(nn.Module):
    """A model of either family, with the tower on batches."""

    def __init__(self, family: str, tokenizer: Tokenizer):
        super().__init__()
        self.family = family
        config = config_of(family, tokenizer)
        kind = Qwen2VLForConditionalGeneration if family == "qwen2_vl" else Qwen2_5_VLForConditionalGeneration
        self.net = kind._from_config(config, attn_implementation={"text_config": attention.NAME})

    @property
    def tower(self) -> nn.Module:
        return self.net.model.visual

    @property
    def text(self) -> nn.Module:
        return self.net.model.language_model

    @property
    def llm(self) -> SimpleNamespace:
        return SimpleNamespace(model=self.text, lm_head=self.net.lm_head)

    def image_features(self, frames: torch.Tensor) -> torch.Tensor:
        """What the language model sees of equal images: float [B, 2, 3, H, W] -> [B, N, WIDTH], in row order."""
        tower = self.tower
        rows, columns = frames.shape[-2] // TOKEN_PX, frames.shape[-1] // TOKEN_PX
        places = places_of(rows, columns).to(frames.device)
        angles = self._angles(places)
        local = self._windows(places)
        hidden = patches_of(frames) @ tower.patch_embed.proj.weight.flatten(1).T
        for depth, block in enumerate(tower.blocks):
            mask = None if local is None or depth in WHOLE_LAYERS else local
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), angles, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merger = tower.merger
        return merger.mlp(merger.ln_q(hidden).reshape(len(hidden), rows * columns, -1))

    def _angles(self, places: torch.Tensor) -> torch.Tensor:
        """Rotary angles [N, head width]: a quarter for rows, a quarter for columns, twice."""
        quarter = TOWER_WIDTH // TOWER_HEADS // 4
        speeds = 10000.0 ** -(torch.arange(quarter, device=places.device) / quarter)
        return (places[..., None] * speeds).flatten(1).repeat(1, 2)

    def _windows(self, places: torch.Tensor) -> torch.Tensor | None:
        """Qwen2.5-VL's mask float [N, N]: 0 within a window, -inf across."""
        if self.family == "qwen2_vl":
            return None
        window = places // (WINDOW_PX // PATCH_PX)
        apart = (window[:, None] != window[None]).any(-1)
        return torch.zeros(apart.shape, device=places.device).masked_fill(apart, -torch.inf)

    def _attend(self, layer, hidden: torch.Tensor, angles: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        size, count, width = hidden.shape
        query, key, value = layer.qkv(hidden).view(size, count, 3, TOWER_HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key = (_rotate(x.float(), angles).to(value.dtype) for x in (query, key))
        out = attention.whole(query, key, value, mask=mask)
        return layer.proj(out.transpose(1, 2).reshape(size, count, width))

    @torch.no_grad()
    def start_from_llava(self, weights: dict[str, torch.Tensor], embeddings: list[torch.Tensor]) -> None:
        """The language model from the tiny LLaVA's (`llm.*` of a stage checkpoint): the same layers without biases.

        embeddings: of the words, coming in and going out.
        """
        old = {k.removeprefix("llm.model."): v for k, v in weights.items() if k.startswith("llm.model.")}
        state = self.text.state_dict()
        biases = {k: torch.zeros_like(v) for k, v in state.items() if k.endswith("_proj.bias")}
        same = {k: v for k, v in old.items() if not k.startswith("embed_tokens")}
        self.text.load_state_dict({**biases, **same, "embed_tokens.weight": embeddings[0]})
        self.net.lm_head.weight.copy_(embeddings[1])
