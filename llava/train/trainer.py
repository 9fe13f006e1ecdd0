"""`LlavaTrainer`: transformers' Trainer with LLaVA's sampler, learning rates and checkpoint files."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dart.training import DartTrainer
from llava.train import checkpoints
from llava.train.data import Conversations, collate
from llava.train.sampling import EpochSampler, by_modality_and_length, shuffled
from llava.train.setup import FULL, PROJECTOR, Learner


class _TellsTheEpoch(TrainerCallback):
    """accelerate does not hand the epoch on to the sampler of a resumed run of several processes."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class LlavaTrainer(DartTrainer, Trainer):
    """Trains a `Learner` on `Conversations`.

    The loss is the mean over the learned tokens of the whole step, whatever number of processes and of accumulated
    batches shares it. skipped: names of the samples that were replaced so far, on this process.
    """

    def __init__(self, learner: Learner, args: Any, dataset: Conversations, **more: Any):
        self.learner = learner
        self.skipped: set[str] = set()
        super().__init__(
            model=learner.model,
            args=args,
            train_dataset=dataset,
            data_collator=collate,
            processing_class=learner.tokenizer,
            **more,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        order: Any = partial(shuffled, range(len(dataset)))
        if self.args.group_by_modality_length:
            batches = self.args.world_size * self.args.gradient_accumulation_steps
            order = partial(by_modality_and_length, dataset.modality_lengths, self.args.train_batch_size, batches)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = EpochSampler(len(dataset), order, seed)
        self.add_callback(_TellsTheEpoch(sampler))
        return sampler

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(parameter_groups(model, self.args, self.get_decay_parameter_names(model)), **options)
        return self.optimizer

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        self.skipped.update(inputs.pop("skipped", ()))
        return inputs

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers takes one step more when a run that has reached its last step is started again.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = output_dir or self.args.output_dir
        if not self.args.should_save:
            return
        os.makedirs(folder, exist_ok=True)
        if self.learner.saved != PROJECTOR:
            super()._save(folder, state_dict)
        checkpoints.write(self.learner, folder, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            checkpoints.forget(os.path.join(self.args.output_dir, folder))
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The last file that every process writes: the state file, which says that a checkpoint is whole, comes next.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.learner.saved != PROJECTOR:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.learner.saved != FULL:
            checkpoints.read(self.learner, resume_from_checkpoint)


def parameter_groups(model: nn.Module, args: Any, decayed: list[str]) -> list[dict[str, Any]]:
    """The optimizer's groups: language model, projector and tower, each with its rate, with and without weight decay.

    decayed: names of what weight decay is for. Groups without a parameter are left out.
    """
    rates = {"vision_tower": args.mm_vision_tower_lr, "mm_projector": args.mm_projector_lr, "": args.learning_rate}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next(part for part in rates if part in name)
            groups.setdefault((part, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": args.weight_decay if decays else 0.0,
            "lr": args.learning_rate if rates[part] is None else rates[part],
        }
        for (part, decays), parameters in groups.items()
    ]
