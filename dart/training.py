"""Token pruning while a model learns, in any run of transformers' Trainer.

    with DartCallback(dart.DartConfig(keep=128)) as pruning:
        Trainer(model, arguments, train_dataset=data, callbacks=[pruning]).train()

`DartTrainer` does the same for a Trainer class of one's own and adds figures to its log. `dart.epic` distils.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from dart.config import DartConfig
from dart.engine.attach import PruneHandle, prune


def drawn(budgets: range, seed: int, step: int) -> int:
    """The budget of a step: a function of the seed and the step, so that ranks agree and a resumed run goes on."""
    generator = torch.Generator().manual_seed(seed)
    return budgets[int(torch.randint(len(budgets), (step + 1,), generator=generator)[-1])]


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) for a step, drawn as `drawn` draws."""
    generator = torch.Generator().manual_seed(seed)
    return float(torch.rand(step + 1, generator=generator, dtype=torch.float64)[-1])


class DartCallback(TrainerCallback):
    """Prunes the Trainer's model from the first step of a training to its last.

    config: any strategy, any settings. budgets: numbers of tokens, of which one is drawn for every step in place of the
    config's budget, by the run's seed and the number of the step. A strategy that draws at random gets another seed
    for every step. Evaluations in between are pruned as the step before them. A training that ends by an exception
    calls no callback: use it in a `with`, or `DartTrainer`. Raises ValueError for an empty range of budgets.
    """

    def __init__(self, config: DartConfig | None = None, budgets: range | None = None):
        if budgets is not None and len(budgets) == 0:
            raise ValueError(f"budgets must hold a number of tokens, got {budgets}")
        self.config, self.budgets = DartConfig() if config is None else config, budgets
        self.handle: PruneHandle | None = None
        self._attached: DartConfig | None = None

    def __enter__(self) -> DartCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self.attach(model, self.config_of(args.seed, state.global_step))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.detach()

    def config_of(self, seed: int, step: int) -> DartConfig:
        """The settings of a step of a run with this seed."""
        config = self.config
        if config.strategy == "random":
            config = replace(config, seed=config.seed + step)
        if self.budgets is None:
            return config
        return replace(config, keep=drawn(self.budgets, seed, step), reduction_ratio=None)

    def attach(self, model: Any, config: DartConfig) -> None:
        """Prune `model` with these settings and no others."""
        if self.handle is None or self._attached != config:
            self.detach()
            self.handle, self._attached = prune(model, config), config

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


class DartTrainer:
    """For a class of one's own, before a Trainer's: `class Mine(DartTrainer, Trainer): ...`.

    pruning: None trains unpruned. What is pruned is pruned no longer when `train` is left, by whichever way; the log
    has the visual tokens before and after.
    """

    def __init__(self, *args: Any, pruning: DartCallback | None = None, **kwargs: Any):
        self.pruning = pruning
        super().__init__(*args, **kwargs)
        if pruning is not None:
            self.add_callback(pruning)  # type: ignore[attr-defined]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self.pruning is not None:
                self.pruning.detach()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        more = self.pruning.figures() if self.pruning is not None and "loss" in logs else {}
        super().log({**logs, **more}, *args, **kwargs)  # type: ignore[misc]
