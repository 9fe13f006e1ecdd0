"""A checkpoint in memory, with the reader of its family."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from dart.cli.errors import UserError, one_line
from dart.cli.media import Video
from dart.cli.readers import Prompt
from dart.families.llava import ORIGINAL_TYPES

READERS = {
    "llava": ("dart.cli.tiles", "Llava"),
    "llava_next": ("dart.cli.tiles", "LlavaNext"),
    "llava_onevision": ("dart.cli.tiles", "LlavaOnevision"),
    "qwen2_vl": ("dart.cli.qwen", "Qwen2"),
    "qwen2_5_vl": ("dart.cli.qwen", "Qwen25"),
    "qwen3_vl": ("dart.cli.qwen", "Qwen3"),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Asks(Protocol):
    """Makes prompts and reads answers."""

    tokenizer: Any

    def read(self, question: str, images: list[Image.Image], videos: list[Video]) -> Prompt: ...


@dataclass(frozen=True)
class Subject:
    """A model and its reader."""

    model: Any
    reader: Asks
    kind: str  # the config's model_type


def load(path: str, device: str | None, dtype: str | None, attention: str | None) -> Subject:
    """A checkpoint of any supported family, from a folder or the hub.

    device None: a GPU where there is one. dtype None: float32 on a CPU, else the checkpoint's (float16 for LLaVA's own
    format). Raises UserError naming what is missing, wrong or not supported.
    """
    place = _device(device)
    logging.disable_progress_bar()
    folder = _folder(path)
    kind = _model_type(folder)
    try:
        if kind in ORIGINAL_TYPES:
            return _load_original(folder, kind, place, dtype, attention)
        return _load(folder, kind, place, dtype, attention)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {path} cannot be loaded: {one_line(error)}") from error


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {name} is unknown: expected cpu, cuda, cuda:1 and so on") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _folder(path: str) -> Path:
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"model {path} does not exist: expected a folder with a checkpoint, or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {path} is no folder here and cannot be fetched from the hub ({type(error).__name__})"
        ) from error


def _model_type(folder: Path) -> str:
    """Raises UserError for a family that DART does not know, before anything large is read."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"model {folder} has no config.json: expected a checkpoint's folder")
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise UserError(f"{file} is not a JSON object") from None
    if kind not in READERS and kind not in ORIGINAL_TYPES:
        known = ", ".join((*READERS, *ORIGINAL_TYPES))
        raise UserError(f"{file}: model_type {kind!r} is not supported; supported families: {known}")
    return kind


def _load(folder: Path, kind: str, device: torch.device, dtype: str | None, attention: str | None) -> Subject:
    config = AutoConfig.from_pretrained(folder)
    module, name = READERS[kind]
    reader = getattr(importlib.import_module(module), name)(folder, config)
    wanted: Any = DTYPES[dtype] if dtype else (torch.float32 if device.type == "cpu" else "auto")
    placement = {} if device.type == "cpu" else {"device_map": {"": device}}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, config=config, dtype=wanted, attn_implementation=attention, output_loading_info=True, **placement
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"checkpoint {folder} lacks weights: {', '.join(missing[:3])} ({len(missing)} in all)")
    return Subject(model.eval(), reader, kind)


def _load_original(folder: Path, kind: str, device: torch.device, dtype: str | None, attention: str | None) -> Subject:
    """LLaVA's own format is read by this project's `llava`, which is a package of its own."""
    try:
        from dart.cli.original import OriginalLlava
    except ImportError as error:
        raise UserError(f"model_type {kind!r} needs this project's package llava ({error})") from error
    reader = OriginalLlava(folder, kind, device, dtype, attention)
    return Subject(reader.model, reader, kind)
