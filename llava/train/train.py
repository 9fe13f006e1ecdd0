"""Train a LLaVA: `python -m llava.train.train --model_name_or_path ... --data_path ... --output_dir ...`.

With DeepSpeed or several processes: `deepspeed` or `torchrun` before `-m llava.train.train`, as scripts/v1_5 do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from dart.epic import EpicTrainer
from dart.utils import UserError, exits_cleanly, needed
from llava.conversation import get_template
from llava.train.arguments import Arguments, parse
from llava.train.checkpoints import check_saving, clear, to_resume
from llava.train.conversations import check_tokenizer
from llava.train.data import Conversations, Encoder
from llava.train.pruning import epic_settings, pruning_callback
from llava.train.setup import Plan, load_learner, plan, size_of
from llava.train.trainer import LlavaTrainer

GRACE_S = 0.5


def say(*lines: str) -> None:
    """Print on the first process alone."""
    if int(os.environ.get("RANK", "0")) == 0:
        for line in lines:
            print(line, flush=True)


def dataset_of(plan: Plan) -> Conversations:
    """The data file in the words of --version."""
    model_args, data = plan.arguments.model, plan.arguments.data
    template = get_template(model_args.version)
    check_tokenizer(plan.tokenizer, template, model_args.version)
    encoder = Encoder(
        tokenizer=plan.tokenizer,
        processor=plan.processor,
        config=plan.config,
        tower=plan.tower,
        template=template,
        limit=plan.config.tokenizer_model_max_length,
        folder=Path(data.image_folder or "."),
    )
    return Conversations(str(data.data_path), encoder, skip=data.on_bad_sample == "skip")


def in_all_processes(names: Sequence[str]) -> list[str]:
    """The different names of every process."""
    gathered: list[Any] = [list(names)]
    if torch.distributed.is_initialized():
        gathered = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, list(names))
    return sorted({name for each in gathered for name in each})


class LlavaEpicTrainer(EpicTrainer, LlavaTrainer):
    """Distils a LLaVA."""


def train(arguments: Arguments, trainer_class: type[LlavaTrainer] | None = None) -> LlavaTrainer:
    """The whole run; returns its trainer. Everything that can be refused is refused before the first step.

    trainer_class: of one's own; for --epic one with `dart.epic.EpicTrainer` in it.
    """
    training = arguments.training
    if arguments.notes:
        say("flags: " + "; ".join(arguments.notes))
    epic = epic_settings(arguments.pruning)
    more: dict[str, Any] = {"pruning": pruning_callback(arguments.pruning)}
    if epic is not None:
        needed("matplotlib.figure", "plot")
        more = {"epic": epic[0], "config": epic[1]}
    checkpoint = to_resume(str(training.output_dir), training.resume_from_checkpoint, training.overwrite_output_dir)
    if training.deepspeed and training.use_cpu:
        # transformers does it on GPUs alone, and ZeRO-3 divides weights already while they are read.
        needed("deepspeed", "train").init_distributed(dist_backend="gloo")
    set_seed(training.seed)
    known = plan(arguments)
    dataset = dataset_of(known)
    learner = load_learner(known)
    say(*check_saving(learner, str(training.output_dir), not training.save_only_model))
    trained = sum(size_of(parameter) for parameter in learner.model.parameters() if parameter.requires_grad)
    say(f"{len(dataset)} samples, {len(dataset.left_out)} left out without their pictures; {trained:,} weights learn")
    kind: Any = trainer_class or (LlavaTrainer if epic is None else LlavaEpicTrainer)
    try:
        trainer = kind(learner, training, dataset, **more)
    except ValueError as error:
        raise UserError(str(error)) from error
    if checkpoint:
        say(f"goes on from {checkpoint}")
    if training.overwrite_output_dir and training.should_save and not checkpoint:
        clear(str(training.output_dir))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    trainer.save_model()
    skipped = in_all_processes(sorted(trainer.skipped))
    left_out = sorted(dataset.left_out.values())
    say(*(f"left out: {name}" for name in (*left_out, *skipped)))
    figures = {"steps": trainer.state.global_step, "left_out": len(left_out) + len(skipped)}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    say(json.dumps({**figures, "last_loss": losses[-1] if losses else None, "output_dir": training.output_dir}))
    return trainer


def train_and_leave(arguments: Arguments) -> None:
    """`train` in a process that ends with it.

    A thread of gloo drops the tensors of the last exchange a moment after it, for which it needs Python; if Python is
    just ending, the whole process aborts with code 134.
    """
    train(arguments)
    if torch.distributed.is_initialized():
        time.sleep(GRACE_S)


@exits_cleanly
def main(words: Sequence[str] | None = None) -> None:
    train_and_leave(parse(sys.argv[1:] if words is None else words))


if __name__ == "__main__":
    main()
