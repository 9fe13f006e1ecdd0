"""`load_pretrained_model`: original LLaVA checkpoints from disk or the hub."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import AutoTokenizer, BitsAndBytesConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dart.utils import UserError, checkpoint_folder, device_of, dtype_of, one_line
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.files import read_json
from llava.model.checkpoint import weight_names
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from llava.model.multimodal_encoder.builder import resolve_tower

DEFAULT_CONTEXT = 2048
TOWER_PREFIX = "model.vision_tower."
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")
PROJECTOR_FILE = "mm_projector.bin"
ADAPTER_FILE = "adapter_config.json"
NON_LORA_FILE = "non_lora_trainables.bin"
LANGUAGE_MODELS: dict[str, Any] = {
    each.config_class.model_type: each
    for each in (LlavaLlamaForCausalLM, LlavaMistralForCausalLM, LlavaQwenForCausalLM)
}
ADDED_PARTS = ("mm_projector", "image_newline")  # what LLaVA adds to a language model, the tower aside
HF_TYPES = ("llava", "llava_next")
LEAST_VOCABULARY = 0.5  # of the embedding's rows that a tokenizer uses; more than padding leaves free is another's


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Load a LLaVA checkpoint and return (tokenizer, model, image_processor, context_len).

    model_path: folder or hub name; model_base: the full model for a projector-only or LoRA checkpoint; model_name is
    accepted for compatibility and decides nothing. device None: CUDA where available, else CPU. torch_dtype None:
    float16 on CUDA, float32 on CPU. Raises FileNotFoundError / ValueError naming what is missing or wrong.
    """
    device = device if isinstance(device, torch.device) else device_of(device)
    dtype = _dtype(torch_dtype if torch_dtype is not None else kwargs.pop("dtype", None), device)
    placement = _placement(device, device_map, load_8bit, load_4bit, dtype)
    with _naming(model_path):
        folder = checked_folder(model_path)
        base = checked_folder(model_base) if model_base else folder
        _check_lora(folder, model_base)
        check_tokenizer(base)
        config = _config(folder)
        if getattr(config, "mm_vision_tower", None) is None:
            raise ValueError(f"{model_path}/config.json has no mm_vision_tower: expected an original LLaVA checkpoint")
        options = {"attn_implementation": attn_implementation, **placement, **kwargs}
        tower_path = resolve_tower(config.mm_vision_tower, folder, base)
        model = load_weights(base, config, dtype, partial=base != folder, options=options)
        load_tower(model, tower_path, dtype)
        if base != folder:
            model = _apply_trained_part(model, folder)
        if not placement:
            model.to(device)
        check_finite(model)
        tokenizer = _load_tokenizer(base, model)
        image_processor = CLIPImageProcessorPil.from_pretrained(tower_path)
        model.eval()
        # Old checkpoints store a max_length that would compete with max_new_tokens.
        model.generation_config.max_length = None
        return tokenizer, model, image_processor, getattr(config, "max_sequence_length", DEFAULT_CONTEXT)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turns whatever a broken checkpoint makes libraries raise into a ValueError about the model `path`."""
    try:
        yield
    except (UserError, FileNotFoundError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and os.path.basename(path.rstrip("/")) in str(error):
            raise
        raise ValueError(
            f"model {path} cannot be loaded: {one_line(error)}; a damaged file must be fetched anew"
        ) from error


def check_finite(model: Any) -> None:
    """Raises ValueError naming the parameters with NaN or infinite values: every answer would be wrong."""
    wrong = [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and not weight.is_meta and not bool(weight.isfinite().all())
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint has weights that are NaN or infinite in {str(model.dtype).removeprefix('torch.')}: "
            f"{', '.join(wrong[:3])} ({len(wrong)} in all); get it again or load it in another dtype"
        )


def check_tokenizer(folder: str) -> None:
    """Without its files AutoTokenizer makes up an empty vocabulary, and every question is lost."""
    if not any(os.path.isfile(os.path.join(folder, name)) for name in TOKENIZER_FILES):
        raise FileNotFoundError(f"{folder} has no tokenizer: expected one of {', '.join(TOKENIZER_FILES)}")


def _check_lora(folder: str, base: str | None) -> None:
    """Raises ValueError for a LoRA checkpoint without what it needs, before anything large is read."""
    if not os.path.isfile(os.path.join(folder, ADAPTER_FILE)):
        return
    if not base:
        raise ValueError(f"{folder} is a LoRA checkpoint: give its base model too (--model-base, model_base=)")
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"{folder} is a LoRA checkpoint and needs the package peft, which is not installed: pip install peft"
        )


def _config(folder: str) -> Any:
    """The config, of the class that its model_type names. Raises ValueError for a model that LLaVA is not."""
    kind = read_json(os.path.join(folder, "config.json")).get("model_type")
    if kind not in LANGUAGE_MODELS:
        hint = "; load llava-hf checkpoints with transformers" if kind in HF_TYPES else ""
        raise ValueError(f"{folder}/config.json: model_type {kind!r} is not one of {', '.join(LANGUAGE_MODELS)}{hint}")
    return LANGUAGE_MODELS[kind].config_class.from_pretrained(folder)


def _dtype(value: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if value is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    return dtype_of(value) if isinstance(value, str) else value


def checked_folder(path: str, revision: str | None = None) -> str:
    folder = checkpoint_folder(path, revision)
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise FileNotFoundError(f"{folder} has no config.json: expected a LLaVA checkpoint folder")
    return folder


def _placement(device: torch.device, device_map: Any, eight: bool, four: bool, dtype: torch.dtype) -> dict[str, Any]:
    """The from_pretrained arguments that put the weights somewhere; empty = load on the CPU, then move."""
    if eight and four:
        raise ValueError("load_8bit and load_4bit are both given: choose one")
    quantization: dict[str, Any] = {}
    if eight or four:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "load_8bit / load_4bit need the package bitsandbytes, which is not installed: pip install bitsandbytes"
            )
        settings = (
            {"load_in_8bit": True}
            if eight
            else {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype, "bnb_4bit_quant_type": "nf4"}
        )
        quantization["quantization_config"] = BitsAndBytesConfig(
            llm_int8_skip_modules=["vision_tower", "mm_projector", "lm_head"], **settings
        )
    if device.type == "cpu" and not quantization:
        return {}
    if device_map == "auto" and device.index is None and device.type == "cuda":
        has_accelerate = importlib.util.find_spec("accelerate") is not None
        return {"device_map": "auto", **quantization} if has_accelerate else quantization
    return {"device_map": {"": device} if device_map in (None, "auto") else device_map, **quantization}


def load_weights(folder: str, config: Any, dtype: torch.dtype, partial: bool, options: dict) -> Any:
    """The model of `config` with the weights in `folder`; partial: the projector may be missing.

    Raises ValueError for other weights that are missing, unknown or of another shape.
    """
    if not any(name.startswith(TOWER_PREFIX) for name in weight_names(folder)):
        config.mm_vision_config = None  # the tower is read from its own folder
    elif getattr(config, "mm_vision_config", None) is None:
        tower = resolve_tower(config.mm_vision_tower, folder)
        config.mm_vision_config = CLIPVisionConfig.from_pretrained(tower).to_dict()
    model, info = LANGUAGE_MODELS[config.model_type].from_pretrained(
        folder, config=config, dtype=dtype, output_loading_info=True, **options
    )
    missing = {name for name in info["missing_keys"] if not (partial and any(part in name for part in ADDED_PARTS))}
    for what, wrong in (
        ("lacks", missing),
        ("has unknown", info["unexpected_keys"]),
        ("has wrongly shaped", info["mismatched_keys"]),
    ):
        if wrong:
            raise ValueError(
                f"checkpoint {folder} {what} weights: {', '.join(sorted(map(str, wrong))[:3])} ({len(wrong)} in all)"
            )
    return model


def load_tower(model: Any, path: str, dtype: torch.dtype) -> None:
    """Read the tower unless the checkpoint brought its own; its geometry goes into the config, for saving."""
    tower = model.get_vision_tower()
    if tower is None or tower.is_loaded:
        return
    tower.load_model(path, dtype)
    tower.to(device=model.model.embed_tokens.weight.device)
    model.config.mm_vision_config = tower.tower.config.to_dict()


def _apply_trained_part(model: Any, folder: str) -> Any:
    """Put a projector-only or LoRA checkpoint on top of the base model."""
    if os.path.isfile(os.path.join(folder, ADAPTER_FILE)):
        from peft import PeftModel

        load_extra(model, os.path.join(folder, NON_LORA_FILE))
        return PeftModel.from_pretrained(model, folder).merge_and_unload()
    load_extra(model, os.path.join(folder, PROJECTOR_FILE))
    return model


def load_extra(model: Any, file: str) -> None:
    """Read the tensors of a `mm_projector.bin` or `non_lora_trainables.bin` into the model, whatever their prefix."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file} does not exist: a checkpoint with a model base needs it")
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    names = {name.removeprefix("base_model.").removeprefix("model.model."): tensor for name, tensor in tensors.items()}
    own = {
        name if name.startswith(("model.", "lm_head")) else f"model.{name}": tensor for name, tensor in names.items()
    }
    with _whole(parameter for name, parameter in model.named_parameters() if name in own):
        unexpected = model.load_state_dict(own, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"{file} has unknown weights: {', '.join(unexpected[:3])}")


def _whole(parameters: Iterable[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    """Parameters that DeepSpeed's ZeRO-3 has divided among processes are whole inside, and divided anew after."""
    divided = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not divided:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(divided, modifier_rank=0)


def _load_tokenizer(folder: str, model: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    if not LEAST_VOCABULARY * rows <= len(tokenizer) <= rows:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens for the {rows} rows of the model's embedding: "
            "it is damaged or another model's, get it again"
        )
    added = []
    if getattr(model.config, "mm_use_im_patch_token", True):
        added.append(DEFAULT_IMAGE_PATCH_TOKEN)
    if getattr(model.config, "mm_use_im_start_end", False):
        added += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    if added:
        tokenizer.add_tokens(added, special_tokens=True)
        if len(tokenizer) > model.config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
    return tokenizer
