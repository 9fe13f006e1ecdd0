"""A checkpoint with the flags of the commands: loading it, and answering one batch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from dart.utils import DTYPES, UserError, add_revision, checkpoint_folder
from llava.dart_args import add_dart_arguments
from llava.eval.engine.prompts import Batch
from llava.eval.engine.ranks import ALONE, Ranks
from llava.eval.engine.sampling import decoding_of
from llava.files import or_embedded
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model

BASE_REVISION = "--model-base-revision"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    tokenizer: Any
    model: Any
    image_processor: Any
    name: str


def add_model_arguments(parser: argparse.ArgumentParser, default_path: str | None = None) -> None:
    """Flags of the model, of decoding and of DART. default_path: a checkpoint to use when none is named."""
    parser.add_argument(
        "--model-path",
        type=or_embedded,
        required=default_path is None,
        default=default_path,
        help="folder or hub name of a LLaVA checkpoint",
    )
    add_revision(parser)
    parser.add_argument("--model-base", help="checkpoint that a LoRA or a projector alone belongs to")
    add_revision(parser, BASE_REVISION)
    parser.add_argument("--device", help="such as cuda:1; default: a GPU where there is one, else cpu")
    parser.add_argument("--torch-dtype", choices=DTYPES, help="of the weights (float16 on CUDA, float32 on a CPU)")
    parser.add_argument("--conv-mode", default="vicuna_v1", help="template of the prompt (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0: answers are drawn (default: greedy)")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest tokens of this total probability")
    parser.add_argument("--num_beams", type=int, default=1, help="of beam search (default: none)")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="of an answer, at most")
    add_dart_arguments(parser)


def base_folder(args: argparse.Namespace) -> str | None:
    """The folder of --model-base, None without one. Raises what `checkpoint_folder` does."""
    if args.model_base is None:
        if args.model_base_revision is not None:
            raise UserError(f"{BASE_REVISION} is for --model-base, which is not given")
        return None
    return checkpoint_folder(args.model_base, args.model_base_revision, BASE_REVISION)


def load(args: argparse.Namespace, ranks: Ranks = ALONE) -> Loaded:
    """The checkpoint, on the device that is asked for; of several processes each takes a GPU of its own."""
    device = args.device
    if device is None and ranks.count > 1 and torch.cuda.is_available():
        device = f"cuda:{ranks.local % torch.cuda.device_count()}"
    tokenizer, model, processor, _ = load_pretrained_model(
        checkpoint_folder(args.model_path, args.revision),
        base_folder(args),
        None,
        device=device,
        torch_dtype=args.torch_dtype,
        attn_implementation=args.attn_implementation,
    )
    own = model.generation_config
    # The flags alone decide how to decode; a checkpoint's own defaults (max_length, temperature, ...) would mix in.
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    return Loaded(tokenizer, model, processor, get_model_name_from_path(args.model_path))


def generate(
    loaded: Loaded, batch: Batch, args: argparse.Namespace, keys: Sequence[Any], streamer: TextStreamer | None = None
) -> list[str]:
    """The answers of one batch. keys: what names each row's question, for reproducible sampling."""
    model, tokenizer = loaded.model, loaded.tokenizer
    out = model.generate(
        **batch.inputs(model),
        max_new_tokens=args.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        streamer=streamer,
        **decoding_of(args, keys),
    )
    return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]
