"""The model that a run trains: a LLaVA checkpoint, or a language model that is given eyes; frozen where it stays."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, BitsAndBytesConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dart.utils import UserError
from llava.files import read_json
from llava.model.builder import (
    DEFAULT_CONTEXT,
    LANGUAGE_MODELS,
    TOWER_PREFIX,
    check_tokenizer,
    checked_folder,
    load_extra,
    load_tower,
    load_weights,
)
from llava.model.checkpoint import weight_names
from llava.model.multimodal_encoder.builder import resolve_tower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.train.arguments import Arguments, ModelArguments, TrainingArguments

# A language model's type -> that of a LLaVA on it.
WITH_EYES = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}
# What decides a projector's shape or its input, by its name in config.json, and what a new LLaVA gets (LLaVA-1.5).
VISION_DEFAULTS: dict[str, Any] = {
    "mm_vision_tower": None,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "flat",
}
PROJECTOR, ADAPTER, FULL = "projector", "adapter", "full"
KBIT_SKIPPED = ["vision_tower", "mm_projector", "lm_head"]


@dataclass(frozen=True)
class Plan:
    """What is known of a run before any weight is read: all that its data depends on.

    folder: of the checkpoint or language model; tower: CLIP's vision config, from `tower_path`; new_projector: the
    checkpoint has none.
    """

    arguments: Arguments
    folder: str
    config: Any
    tokenizer: Any
    processor: Any
    tower_path: str
    tower: CLIPVisionConfig
    new_projector: bool


@dataclass(frozen=True)
class Learner:
    """model: for the Trainer, wrapped by peft with LoRA; llava: the LLaVA in it; saved: what a checkpoint holds."""

    model: Any
    llava: Any
    tokenizer: Any
    processor: Any
    saved: str


def plan(arguments: Arguments) -> Plan:
    """Read the small files that the arguments name.

    Raises UserError, ValueError or FileNotFoundError for what is missing or does not fit.
    """
    folder, projector_file = (
        checked_folder(str(arguments.model.model_name_or_path), arguments.model.revision),
        arguments.model.pretrain_mm_mlp_adapter,
    )
    if projector_file and not os.path.isfile(projector_file):
        raise UserError(
            f"--pretrain_mm_mlp_adapter {projector_file} does not exist: expected stage 1's mm_projector.bin"
        )
    check_tokenizer(folder)
    weight_names(folder)
    config, new_projector = training_config(folder, arguments)
    tower_path = resolve_tower(config.mm_vision_tower, folder)
    tower = CLIPVisionConfig.from_pretrained(tower_path)
    if not new_projector and config.mm_hidden_size != tower.hidden_size:
        raise UserError(
            f"--vision_tower {config.mm_vision_tower} has features of {tower.hidden_size} numbers, the projector of "
            f"{folder} takes {config.mm_hidden_size}"
        )
    config.mm_hidden_size = tower.hidden_size
    return Plan(
        arguments=arguments,
        folder=folder,
        config=config,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        processor=CLIPImageProcessorPil.from_pretrained(tower_path),
        tower_path=tower_path,
        tower=tower,
        new_projector=new_projector,
    )


def load_learner(plan: Plan) -> Learner:
    """The model of the plan, ready to be trained. Raises ValueError for weights that do not fit."""
    model_args, training, config = plan.arguments.model, plan.arguments.training, plan.config
    dtype, options = _dtype(model_args, training), _options(model_args, training)
    llava = load_weights(plan.folder, config, dtype, partial=plan.new_projector, options=options)
    load_tower(llava, plan.tower_path, dtype)
    if plan.new_projector:
        # As LLaVA: torch's own start, not the language model's.
        llava.model.mm_projector = build_vision_projector(config).to(dtype)
        if hasattr(llava.model, "image_newline"):
            nn.init.normal_(llava.model.image_newline, std=config.hidden_size**-0.5)
    if model_args.pretrain_mm_mlp_adapter:
        load_extra(llava, model_args.pretrain_mm_mlp_adapter)
    llava.config.use_cache = False
    model = freeze(llava, model_args, training)
    set_trained_dtype(model, dtype if training.deepspeed else torch.float32)
    return Learner(model, llava, plan.tokenizer, plan.processor, saved_part(model, llava, training))


def training_config(folder: str, arguments: Arguments) -> tuple[Any, bool]:
    """(the config of the model in `folder` with the run's settings, whether its projector is new)."""
    model_args, data = arguments.model, arguments.data
    raw = read_json(os.path.join(folder, "config.json"))
    kind = raw.get("model_type")
    if kind in LANGUAGE_MODELS:
        config = LANGUAGE_MODELS[kind].config_class.from_pretrained(folder)
    elif kind in WITH_EYES:
        known = {key: value for key, value in raw.items() if key not in ("model_type", "architectures")}
        config = LANGUAGE_MODELS[WITH_EYES[kind]].config_class(**known)
    else:
        known_types = ", ".join((*LANGUAGE_MODELS, *WITH_EYES))
        raise UserError(f"{folder}/config.json (--model_name_or_path): model_type {kind!r} is not one of {known_types}")
    if getattr(config, "mm_use_im_start_end", False) or raw.get("mm_use_im_patch_token", False):
        raise UserError(f"{folder} has words of its own for images: such checkpoints can be evaluated, not trained")
    new_projector = getattr(config, "mm_vision_tower", None) is None
    _set_vision(config, folder, model_args)
    config.use_mm_proj = True
    config.mm_use_im_start_end = config.mm_use_im_patch_token = False
    config.tokenizer_padding_side = "right"
    ratio = data.image_aspect_ratio or getattr(config, "image_aspect_ratio", None) or "square"
    if ratio not in ("square", "pad", "anyres"):
        raise UserError(f"--image_aspect_ratio must be square, pad or anyres, got {ratio!r}")
    config.image_aspect_ratio = ratio
    config.image_grid_pinpoints = data.image_grid_pinpoints or getattr(config, "image_grid_pinpoints", None)
    if ratio == "anyres" and not config.image_grid_pinpoints:
        raise UserError("--image_aspect_ratio anyres needs --image_grid_pinpoints, like '[(336, 672), (672, 336)]'")
    given = arguments.training.model_max_length
    limit = given or getattr(config, "tokenizer_model_max_length", None) or DEFAULT_CONTEXT
    config.tokenizer_model_max_length = int(limit)
    config.mm_projector_lr = arguments.training.mm_projector_lr
    config.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter
    config.unfreeze_mm_vision_tower = arguments.training.mm_vision_tower_lr is not None
    return config, new_projector


def _set_vision(config: Any, folder: str, model_args: ModelArguments) -> None:
    """What the projector depends on: as the checkpoint says, as the flags say for a language model without one."""
    given = {
        "mm_vision_tower": model_args.vision_tower,
        "mm_vision_select_layer": model_args.mm_vision_select_layer,
        "mm_vision_select_feature": model_args.mm_vision_select_feature,
        "mm_projector_type": model_args.mm_projector_type,
        "mm_patch_merge_type": model_args.mm_patch_merge_type,
    }
    for name, value in given.items():
        own = getattr(config, name, None)
        flag = "--" + (name if name != "mm_vision_tower" else "vision_tower")
        if value is not None and own is not None and value != own:
            if name == "mm_vision_tower" and not any(w.startswith(TOWER_PREFIX) for w in weight_names(folder)):
                if resolve_tower(own, folder) != resolve_tower(value, folder):
                    config.mm_vision_config = None
                    config.mm_vision_tower = value
                continue
            raise UserError(f"{flag} is {value!r}, but the checkpoint {folder} was trained with {own!r}: leave it out")
        setattr(config, name, VISION_DEFAULTS[name] if value is None and own is None else value or own)
    if config.mm_vision_tower is None:
        raise UserError(f"--vision_tower is missing: {folder} is a language model without one")


def _dtype(model_args: ModelArguments, training: TrainingArguments) -> torch.dtype:
    """Of the weights in memory: half precision only where they stay as they are, or DeepSpeed has the whole ones."""
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    stay = training.lora_enable or model_args.tune_mm_mlp_adapter or model_args.freeze_backbone
    return half if training.deepspeed or stay else torch.float32


def _options(model_args: ModelArguments, training: TrainingArguments) -> dict[str, Any]:
    """Arguments of from_pretrained."""
    options: dict[str, Any] = {"attn_implementation": model_args.attn_implementation}
    if training.bits < 16:
        compute = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=training.bits == 4,
            load_in_8bit=training.bits == 8,
            llm_int8_skip_modules=KBIT_SKIPPED,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_use_double_quant=training.double_quant,
            bnb_4bit_quant_type=training.quant_type,
        )
        options["device_map"] = {"": training.device}
    return options


def freeze(llava: Any, model_args: ModelArguments, training: TrainingArguments) -> Any:
    """Set what learns and return the model for the Trainer: `llava`, or `llava` wrapped by peft.

    Stage 1 learns the projector, stage 2 everything but the vision tower, LoRA its adapters and the projector; the
    tower learns with --mm_vision_tower_lr.
    """
    llava.requires_grad_(not (model_args.freeze_backbone or model_args.tune_mm_mlp_adapter or training.lora_enable))
    tower = llava.get_vision_tower()
    tower.requires_grad_(False)
    model = add_lora(llava, training) if training.lora_enable else llava
    llava.model.mm_projector.requires_grad_(not training.freeze_mm_mlp_adapter)
    if hasattr(llava.model, "image_newline"):
        llava.model.image_newline.requires_grad_(not training.freeze_mm_mlp_adapter)
    if training.mm_vision_tower_lr is not None:
        for parameter in tower.used_parameters():
            parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing is left to train: --freeze_backbone and --freeze_mm_mlp_adapter freeze all of it")
    return model


def add_lora(llava: Any, training: TrainingArguments) -> Any:
    """`llava` with adapters on every linear layer of its decoder: not on the head, the projector or the tower."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if training.bits < 16:
        prepare_model_for_kbit_training(llava, use_gradient_checkpointing=bool(training.gradient_checkpointing))
    linear = {
        re.sub(r"\d+", r"\\d+", name.replace(".", r"\."), count=1)
        for name, module in llava.named_modules()
        if name.startswith("model.layers.") and isinstance(module, nn.Linear)
    }
    lora = LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        target_modules="|".join(sorted(linear)),
        lora_dropout=training.lora_dropout,
        bias=training.lora_bias,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llava, lora)


def set_trained_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring all that learns to one dtype, which ZeRO wants (peft's adapters are in float32 from the start).

    Without DeepSpeed it is float32: steps of an optimizer are smaller than what half precision resolves, and autocast
    computes in it all the same.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def size_of(parameter: nn.Parameter) -> int:
    """Numbers in a parameter, also in one of which ZeRO-3 keeps a part here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def saved_part(model: Any, llava: Any, training: TrainingArguments) -> str:
    """What a checkpoint must hold to have all that was trained."""
    if training.lora_enable:
        return ADAPTER
    learned = [name for name, parameter in llava.named_parameters() if parameter.requires_grad]
    alone = all("mm_projector" in name or "image_newline" in name for name in learned)
    return PROJECTOR if alone else FULL
