"""What a checkpoint folder holds, in LLaVA's files; the same in every checkpoint-N and at the end.

Stage 1: mm_projector.bin and config.json. LoRA: peft's adapter, config.json, and non_lora_trainables.bin with whatever
else was trained. Otherwise the whole model, its vision tower among the weights and the tower's settings in a folder.
`llava.model.builder.load_pretrained_model` loads all of them; the first two on their base.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dart.utils import UserError, one_line, replacing
from llava.files import read_json
from llava.model.builder import NON_LORA_FILE, PROJECTOR_FILE, load_extra
from llava.train.setup import ADAPTER, PROJECTOR, Learner, size_of

LORA_KEY = "lora_"
PROJECTOR_KEYS = ("mm_projector", "image_newline")
BYTES_OF_ADAM = 8  # two moments in float32


def write(learner: Learner, folder: str, state: Mapping[str, torch.Tensor] | None) -> None:
    """Add LLaVA's files to a checkpoint folder of the Trainer's (for stage 1: all there is).

    state: the model's tensors where the engine has gathered them (DeepSpeed), else None.
    """
    tensors = learner.model.state_dict() if state is None else state
    if learner.saved == PROJECTOR:
        _save_tensors(tensors, os.path.join(folder, PROJECTOR_FILE), PROJECTOR_KEYS)
        learner.llava.config.save_pretrained(folder)
    elif learner.saved == ADAPTER:
        trained = [name for name, parameter in learner.model.named_parameters() if parameter.requires_grad]
        rest = tuple(name for name in trained if LORA_KEY not in name)
        _save_tensors(tensors, os.path.join(folder, NON_LORA_FILE), rest)
        learner.llava.config.save_pretrained(folder)
    else:
        write_tower(learner.llava, learner.processor, folder)


def _save_tensors(state: Mapping[str, torch.Tensor], file: str, parts: tuple[str, ...]) -> None:
    chosen = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if any(p in name for p in parts)}
    with replacing(Path(file)) as temporary:
        torch.save(chosen, temporary)


def write_tower(llava: Any, processor: Any, folder: str) -> None:
    """The tower's settings in a folder of the checkpoint, named in its config: its weights are the model's now."""
    config = copy.deepcopy(llava.config)
    config.mm_vision_tower = os.path.basename(os.path.normpath(config.mm_vision_tower))
    home = os.path.join(folder, config.mm_vision_tower)
    llava.get_vision_tower().tower.config.save_pretrained(home)
    processor.save_pretrained(home)
    config.save_pretrained(folder)


def read(learner: Learner, folder: str) -> None:
    """Put what `write` added back into the model."""
    name = PROJECTOR_FILE if learner.saved == PROJECTOR else NON_LORA_FILE
    load_extra(learner.llava, os.path.join(folder, name))


def to_resume(output_dir: str, given: str | None, anew: bool) -> str | None:
    """The checkpoint to go on from: the one that is given, else the newest whole one in `output_dir`, else None.

    given: --resume_from_checkpoint, a folder or True / False. anew: --overwrite_output_dir, None whatever is there.
    Raises UserError where `given` is no checkpoint, `True` and there is none, `False` and there is one, and where the
    checkpoint has no optimizer.
    """
    wish = str(given).lower() if given is not None else None
    if wish not in (None, "true", "false"):
        if not _is_whole(Path(str(given))):
            raise UserError(f"--resume_from_checkpoint {given} is no checkpoint folder of a training run")
        return _with_optimizer(Path(str(given)))
    if anew:
        return None
    found = [path for path in _folders(output_dir) if _is_whole(path)]
    if not found:
        if wish == "true":
            raise UserError(
                f"--resume_from_checkpoint True: {output_dir} (--output_dir) has no checkpoint to go on from"
            )
        return None
    newest = max(found, key=lambda path: int(path.name.rpartition("-")[2]))
    if wish == "false":
        raise UserError(
            f"--resume_from_checkpoint False: {output_dir} (--output_dir) has {newest.name} of an earlier run: choose "
            "another folder, or remove its checkpoints with --overwrite_output_dir True"
        )
    return _with_optimizer(newest)


def clear(output_dir: str) -> None:
    """Remove the checkpoints of an earlier run, which a new one that is cut off must not go on from."""
    for folder in _folders(output_dir):
        forget(folder)
        shutil.rmtree(folder)


def forget(folder: str | Path) -> None:
    """From now on the checkpoint counts as unfinished, whatever is written to it or removed from it."""
    Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)


def _folders(output_dir: str) -> list[Path]:
    return list(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def _with_optimizer(folder: Path) -> str:
    if not any(folder.glob("rng_state*")):
        raise UserError(
            f"{folder} has weights alone (--save_only_model): a run cannot go on from it; --overwrite_output_dir True "
            "starts anew, and --model_name_or_path takes a model's weights from any folder"
        )
    return str(folder)


def _is_whole(path: Path) -> bool:
    """Was the checkpoint written to its end? The Trainer's state is its last file."""
    if re.search(r"-\d+$", path.name) is None:
        return False
    try:
        return "global_step" in read_json(path / TRAINER_STATE_NAME)
    except (OSError, ValueError):
        return False


def check_saving(learner: Learner, output_dir: str, keeps_optimizer: bool) -> list[str]:
    """Try what a run would fail at in its end; the notes say what was put right.

    Raises UserError for a folder that cannot be written or has no room for one checkpoint.
    """
    notes = mend_generation(learner.llava)
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir) as folder:
            learner.llava.config.save_pretrained(folder)
            learner.llava.generation_config.save_pretrained(folder)
            learner.tokenizer.save_pretrained(folder)
            learner.processor.save_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"--output_dir {output_dir}: a checkpoint cannot be saved there ({one_line(error)})") from error
    needed, free = checkpoint_bytes(learner, keeps_optimizer), shutil.disk_usage(output_dir).free
    if needed > free:
        raise UserError(
            f"--output_dir {output_dir} has {free / 1e9:.1f} GB free, and a checkpoint takes {needed / 1e9:.1f} GB"
        )
    return notes


def mend_generation(llava: Any) -> list[str]:
    """Settings of sampling without sampling (Vicuna's) cannot be saved: sampling is switched on, with a note."""
    generation = llava.generation_config
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
        try:
            generation.validate(strict=True)
        except ValueError as error:
            raise UserError(f"the model's generation_config.json cannot be saved: {one_line(error)}") from error
        return ["generation_config.json has settings of sampling: do_sample is set to True, or it could not be saved"]
    return []


def checkpoint_bytes(learner: Learner, keeps_optimizer: bool) -> int:
    """How large a checkpoint is, from the parameters."""
    trained = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    parts = trained if learner.saved in (PROJECTOR, ADAPTER) else learner.model.parameters()
    weights = sum(size_of(parameter) * parameter.element_size() for parameter in parts)
    return weights + keeps_optimizer * BYTES_OF_ADAM * sum(map(size_of, trained))
