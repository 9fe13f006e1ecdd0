"""Loading checkpoints in LLaVA's original format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

DEFAULT_CONTEXT = 2048
PROJECTOR_FILE = "mm_projector.bin"
INDEX_FILES = ("pytorch_model.bin.index.json", "model.safetensors.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
TOWER_PREFIX = "model.vision_tower.vision_tower."


def check_files(model_path: str) -> None:
    """Raise FileNotFoundError naming what a local checkpoint folder lacks; a name that is no path is left to the hub."""
    folder = Path(model_path)
    if not folder.exists():
        looks_local = model_path.startswith((".", "/", "~")) or model_path.count("/") != 1
        if looks_local or folder.parent.is_dir():
            raise FileNotFoundError(f"model path {model_path} does not exist; give the folder of a LLaVA checkpoint")
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model path {model_path} has no config.json; give the folder of a LLaVA checkpoint")
    for name in INDEX_FILES:
        if (folder / name).is_file():
            shards = sorted(set(json.loads((folder / name).read_text())["weight_map"].values()))
            if missing := [s for s in shards if not (folder / s).is_file()]:
                raise FileNotFoundError(f"checkpoint {model_path} lacks its shard {', '.join(missing)}, named in {name}; download it again")
            return
    if not any((folder / name).is_file() for name in (*SINGLE_FILES, PROJECTOR_FILE)):
        raise FileNotFoundError(f"checkpoint {model_path} has no weights; expected {', '.join((*INDEX_FILES, *SINGLE_FILES))}")


def _quantization(load_8bit: bool, load_4bit: bool, dtype: torch.dtype) -> dict[str, Any]:
    if not (load_8bit or load_4bit):
        return {}
    if not is_bitsandbytes_available():
        raise ValueError("4-bit and 8-bit loading need the package bitsandbytes: pip install bitsandbytes")
    if load_8bit:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return {"quantization_config": config}


def _load_projector(model: LlavaLlamaForCausalLM, folder: str) -> None:
    weights = torch.load(Path(folder) / PROJECTOR_FILE, map_location="cpu", weights_only=True)
    own = {key.split("mm_projector.")[-1]: value for key, value in weights.items() if "mm_projector" in key}
    model.model.mm_projector.load_state_dict(own)


def _check_keys(info: dict[str, Any], model_path: str, projector_follows: bool) -> list[str]:
    """No weight may be left to chance. Returns the checkpoint's own tower keys."""
    missing = [k for k in info["missing_keys"] if not (projector_follows and "mm_projector" in k)]
    unexpected = [k for k in info["unexpected_keys"] if not k.startswith((TOWER_PREFIX, "model.image_newline")) and "inv_freq" not in k]
    for what, keys in (("lacks the weights", missing), ("has unknown weights", unexpected)):
        if keys:
            raise ValueError(f"checkpoint {model_path} {what} {', '.join(sorted(keys)[:3])} ({len(keys)} in all); it is no LLaVA-1.5 checkpoint")
    return [k for k in info["unexpected_keys"] if k.startswith(TOWER_PREFIX)]


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = None,
    device: str | None = None,
    attn_implementation: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> tuple[Any, LlavaLlamaForCausalLM, Any, int]:
    """(tokenizer, model, image_processor, context_len) of a checkpoint in LLaVA's format.

    model_path: folder or hub name; model_base: the language model of a checkpoint that holds a projector alone; model_name: accepted for
    compatibility, it decides nothing. device: default CUDA where there is one, else the CPU. torch_dtype: default float16 on CUDA, float32 on
    the CPU. attn_implementation: eager, sdpa, flash_attention_2, flex_attention. Raises FileNotFoundError / ValueError naming the file at fault.
    """
    check_files(model_path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(torch_dtype, str):
        torch_dtype = getattr(torch, torch_dtype)
    dtype = torch_dtype or (torch.float16 if str(device).startswith("cuda") else torch.float32)
    source = model_base or model_path
    tokenizer = AutoTokenizer.from_pretrained(source, use_fast=False)
    config = LlavaConfig.from_pretrained(model_path)
    if device_map in (None, "auto"):
        device_map = {"": device}
    options = {"dtype": dtype, "device_map": device_map, **_quantization(load_8bit, load_4bit, dtype), **kwargs}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    model, info = LlavaLlamaForCausalLM.from_pretrained(source, config=config, output_loading_info=True, **options)
    own_tower = _check_keys(info, model_path, projector_follows=model_base is not None)
    if model_base is not None:
        _load_projector(model, model_path)
    if own_tower:
        raise ValueError(f"checkpoint {model_path} carries its own vision tower (LLaVA-NeXT), which is not supported yet")
    model.eval()
    model.load_vision_tower(model_path, dtype, device)
    context = getattr(config, "max_sequence_length", None) or DEFAULT_CONTEXT
    return tokenizer, model, model.get_vision_tower().image_processor, context
