"""Visual tokens dropped while a LLaVA learns: any strategy of `dart`, its budget drawn anew for every step."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

import dart
from dart.utils import UserError
from llava.train.arguments import PruningArguments


def pruning_config(args: PruningArguments) -> tuple[dart.DartConfig, range] | None:
    """(the settings, the budgets to draw from), None without --strategy. Raises UserError naming the flag."""
    if args.strategy is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", args.keep)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not 0 < least <= most:
        raise UserError(f"--keep must be a number of tokens (128) or a range (64-192), got {args.keep!r}")
    try:
        config = dart.DartConfig(
            keep=most,
            strategy=args.strategy,
            layer=args.pruned_layer,
            image_pivots=args.pivot_image_token,
            text_pivots=args.pivot_text_token,
            scope=args.scope,
        )
        dart.strategies.in_model(config.strategy)
    except (TypeError, ValueError) as error:
        raise UserError(f"--strategy, --keep and what belongs to them: {error}") from error
    return config, range(least, most + 1)


def drawn(budgets: range, seed: int, step: int) -> int:
    """The budget of a step: a function of the seed and the step, so that ranks agree and a resumed run goes on."""
    generator = torch.Generator().manual_seed(seed)
    return budgets[int(torch.randint(len(budgets), (step + 1,), generator=generator)[-1])]


class PruningCallback(TrainerCallback):
    """Prunes `model` from the first step of a training to its last, with a budget drawn out of `budgets` for each."""

    def __init__(self, model: Any, config: dart.DartConfig, budgets: range):
        self.model, self.config, self.budgets = model, config, budgets
        self.handle: dart.PruneHandle | None = None

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        keep = drawn(self.budgets, args.seed, state.global_step)
        if self.handle is None or self.handle.config.keep != keep:
            self.detach()
            self.handle = dart.prune(self.model, replace(self.config, keep=keep))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the pruning off, also after a training that failed."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def figures(self) -> dict[str, float]:
        """For the log: visual tokens before and after, of a sample of the last batch with pictures."""
        report = None if self.handle is None else self.handle.last
        if report is None:
            return {}
        seen = [pair for pair in zip(report.visual_before, report.visual_after, strict=True) if pair[0]]
        return {
            "visual_tokens": sum(before for before, _ in seen) / len(seen),
            "visual_tokens_kept": sum(after for _, after in seen) / len(seen),
        }
