"""LLaVA's command line, `--model_name_or_path ... --version v1 ...`, on today's transformers.

Defaults are those of LLaVA-1.5's scripts where LLaVA's own would train something else (docs/training.md lists them).
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

import torch
import transformers

from dart.utils import UserError, installed_by, one_line

ON_BAD_SAMPLE = ("refuse", "skip")
CHECKPOINTING = "activation_checkpointing"  # the name of gradient_checkpointing in newer releases
# Flags of older releases -> today's; None: nothing is left to set. The second part says why.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "tokenizer_model_max_length": "model_max_length",
}
DROPPED = {
    "group_by_length": "use --group_by_modality_length",
    "is_multimodal": "rows with pictures are found in the data",
    "lazy_preprocess": "always so",
    "logging_dir": "loggers write where they are set to, TensorBoard to $TENSORBOARD_LOGGING_DIR",
    "lora_weight_path": "never had an effect",
    "mpt_attn_impl": "no MPT models here",
    "save_safetensors": "always so",
    "half_precision_backend": "torch's",
}


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "language model or LLaVA checkpoint"})
    revision: str | None = field(
        default=None, metadata={"help": "commit, tag or branch of model_name_or_path on the hub; default: main"}
    )
    version: str = field(default="v1", metadata={"help": "conversation template, plain for stage 1"})
    freeze_backbone: bool = field(default=False, metadata={"help": "do not train the language model"})
    tune_mm_mlp_adapter: bool = field(default=False, metadata={"help": "train the projector alone (stage 1)"})
    vision_tower: str | None = field(default=None, metadata={"help": "CLIP; default: the checkpoint's"})
    mm_vision_select_layer: int | None = field(default=None, metadata={"help": "default: the checkpoint's, or -2"})
    pretrain_mm_mlp_adapter: str | None = field(default=None, metadata={"help": "mm_projector.bin of stage 1"})
    mm_projector_type: str | None = field(default=None, metadata={"help": "default: the checkpoint's, or mlp2x_gelu"})
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False
    mm_patch_merge_type: str | None = field(default=None, metadata={"help": "default: the checkpoint's, or flat"})
    mm_vision_select_feature: str | None = field(default=None, metadata={"help": "default: the checkpoint's, or patch"})
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2"})


@dataclass
class DataArguments:
    """What it learns from."""

    data_path: str | None = field(default=None, metadata={"help": "LLaVA's JSON list of conversations"})
    image_folder: str | None = field(default=None, metadata={"help": "what picture paths are relative to"})
    image_aspect_ratio: str | None = field(
        default=None, metadata={"help": "square, pad or anyres; default: the checkpoint's, or square"}
    )
    image_grid_pinpoints: str | None = field(default=None, metadata={"help": "anyres: [(width, height), ...]"})
    on_bad_sample: str = field(
        default="refuse", metadata={"help": "rows without their pictures or with broken ones: refuse or skip"}
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' and LLaVA's."""

    cache_dir: str | None = None
    optim: str = "adamw_torch"
    remove_unused_columns: bool = False
    overwrite_output_dir: bool = field(default=False, metadata={"help": "start anew where checkpoints lie"})
    ddp_find_unused_parameters: bool | None = False
    freeze_mm_mlp_adapter: bool = field(default=False, metadata={"help": "do not train the projector"})
    model_max_length: int | None = field(
        default=None, metadata={"help": "tokens of a sample, images counted; default: the checkpoint's, or 2048"}
    )
    double_quant: bool = True
    quant_type: str = "nf4"
    bits: int = field(default=16, metadata={"help": "4 or 8: QLoRA, with --lora_enable"})
    lora_enable: bool = False
    lora_r: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_bias: str = field(default="none", metadata={"help": "none, all or lora_only"})
    mm_projector_lr: float | None = None
    mm_vision_tower_lr: float | None = field(default=None, metadata={"help": "trains the vision tower, too"})
    group_by_modality_length: bool = False


@dataclass
class PruningArguments:
    """Which visual tokens are dropped while the model learns."""

    strategy: str | None = field(default=None, metadata={"help": "dart, fastv, random, ...; default: none are dropped"})
    keep: str | None = field(
        default=None, metadata={"help": "tokens that stay: 128 (default), or 64-192 drawn anew for every step"}
    )
    epic: str | None = field(
        default=None, metadata={"help": "distil from a lower compression: tcd, lcd, icd, tcd-coded"}
    )
    alpha: float | None = field(default=None, metadata={"help": "weight of the distillation; default: the preset's"})
    temperature: float | None = field(default=None, metadata={"help": "of the distillation; default: the preset's"})
    pruned_layer: int = 2
    pivot_image_token: int = 4
    pivot_text_token: int = 4
    scope: str = field(default="span", metadata={"help": "span: a share for each picture, joint: one budget"})


@dataclass
class Arguments:
    """All of a run's arguments; notes: what was translated, for the log."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    pruning: PruningArguments
    notes: list[str]


class _Parser(transformers.HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def translate(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the command line in today's flags, what was changed): flags that transformers or this project no longer have."""
    translated: list[str] = []
    notes: list[str] = []
    known = {each.name for each in fields(transformers.TrainingArguments)}
    renamed = {**RENAMED, **({"gradient_checkpointing": CHECKPOINTING} if CHECKPOINTING in known else {})}
    dropping = False
    for word in words:
        name = word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else None
        if name is None:
            translated += [] if dropping else [word]
            continue
        dropping = name in DROPPED and name not in known
        if dropping:
            notes.append(f"--{name}: {DROPPED[name]}")
        elif name in renamed and name not in known - {"gradient_checkpointing"}:
            translated.append(f"--{renamed[name]}{word[2 + len(name) :]}")
            notes.append(f"--{name} is --{renamed[name]}")
        else:
            translated.append(word)
    return translated, notes


def for_this_machine(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the command line, what was changed). Without a GPU transformers refuses --tf32 and has to be told of the CPU."""
    if torch.cuda.is_available():
        return list(words), []
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tf32", nargs="?", const=True)
    parser.add_argument("--use_cpu", nargs="?", const=True)
    given, rest = parser.parse_known_args(list(words))
    notes = ["no GPU: this trains on the CPU"] + (["--tf32 is left out"] if given.tf32 is not None else [])
    return [*rest, "--use_cpu", "True"], notes


def parse(words: Sequence[str]) -> Arguments:
    """The command line. Raises UserError naming the flag."""
    translated, notes = translate(words)
    translated, more = for_this_machine(translated)
    parser = _Parser([ModelArguments, DataArguments, TrainingArguments, PruningArguments])  # type: ignore[arg-type]
    if any(word.partition("=")[0] == "--deepspeed" for word in translated):
        _need("deepspeed", "--deepspeed", "train")
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(translated, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise UserError(one_line(error)) from error
    if unknown:
        raise UserError(f"unknown: {' '.join(unknown)} (--help lists the options)")
    model, data, training, pruning = parsed
    arguments = Arguments(model, data, training, pruning, notes + more)
    _check(arguments)
    return arguments


def _check(arguments: Arguments) -> None:
    model, data, training = arguments.model, arguments.data, arguments.training
    for flag, value in (
        ("--model_name_or_path", model.model_name_or_path),
        ("--data_path", data.data_path),
        ("--output_dir", training.output_dir),
    ):
        if not value:
            raise UserError(f"{flag} is missing")
    if data.on_bad_sample not in ON_BAD_SAMPLE:
        raise UserError(f"--on_bad_sample must be one of {', '.join(ON_BAD_SAMPLE)}, got {data.on_bad_sample!r}")
    if model.mm_use_im_start_end or model.mm_use_im_patch_token:
        raise UserError(
            "--mm_use_im_start_end and --mm_use_im_patch_token add words to the vocabulary, which no LLaVA since 1.5 "
            "does: they are supported in evaluation alone, set them to False"
        )
    if model.tune_mm_mlp_adapter and (training.lora_enable or training.freeze_mm_mlp_adapter):
        raise UserError(
            "--tune_mm_mlp_adapter trains the projector alone: leave out --lora_enable, --freeze_mm_mlp_adapter"
        )
    pruning = arguments.pruning
    if (pruning.strategy or pruning.epic) and training.deepspeed and _zero_stage(training) == 3:
        flag = f"--epic {pruning.epic}" if pruning.epic else f"--strategy {pruning.strategy}"
        raise UserError(
            f"{flag} cannot run under ZeRO-3: a process whose batch is text would not "
            "fetch the weights that the others choose tokens with: use scripts/zero2.json"
        )
    _check_lora(training)
    _check_packages(training)


def _check_lora(training: TrainingArguments) -> None:
    if training.bits not in (4, 8, 16):
        raise UserError(f"--bits must be 4, 8 or 16, got {training.bits}")
    if training.bits < 16:
        if not training.lora_enable:
            raise UserError(f"--bits {training.bits} can only be trained with --lora_enable True")
        if not torch.cuda.is_available():
            raise UserError(f"--bits {training.bits} (QLoRA) needs a CUDA GPU, and torch sees none: use --bits 16")
        _need("bitsandbytes", f"--bits {training.bits}", "quant")
        if training.deepspeed and _zero_stage(training) == 3:
            raise UserError(f"--bits {training.bits} cannot be divided by ZeRO-3: use scripts/zero2.json")
    if training.lora_enable:
        _need("peft", "--lora_enable", "lora")
    if training.lora_bias not in ("none", "all", "lora_only"):
        raise UserError(f"--lora_bias must be none, all or lora_only, got {training.lora_bias!r}")


def _check_packages(training: TrainingArguments) -> None:
    for name in training.report_to or []:
        package = {"tensorboard": "tensorboard", "wandb": "wandb"}.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f"--report_to {name} needs the package {package}: pip install {package}, or --report_to none"
            )


def _zero_stage(training: TrainingArguments) -> int:
    config: Any = training.hf_deepspeed_config
    return int(config.get_value("zero_optimization.stage", 0))


def _need(package: str, flag: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{flag} needs the package {package}, which is not installed: {installed_by(extra)}")
