"""Token pruning while a model learns, in any run of transformers' Trainer.

    with DartCallback(dart.DartConfig(keep=128)) as pruning:
        Trainer(model, arguments, train_dataset=data, callbacks=[pruning]).train()

`DartTrainer` does the same for a Trainer class of one's own and adds figures to its log. `dart.epic` distils.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState

from dart.config import DartConfig
from dart.engine.attach import PruneHandle, prune


def uniform(seed: int, step: int) -> float:
    """A random number in [0, 1), float64: a function of these two alone.

    So the ranks of a run agree on it without a word, and a resumed run goes on with what the undisturbed one would have
    drawn. seed: the run's, 0 or more. step: number of the optimizer's step, from 0. The cost does not grow with it.
    """
    return float(np.random.default_rng((seed, step)).random())


def drawn(budgets: range, seed: int, step: int) -> int:
    """The budget of a step, in visual tokens: one of `budgets`, each as likely, by `uniform`."""
    return budgets[int(uniform(seed, step) * len(budgets))]


class DartCallback(TrainerCallback):
    """Prunes the Trainer's model from the first step of a training to its last.

    DART in training is section 4.1 of its paper (arXiv 2502.11494), which does not say with which budgets.

    config: any strategy, any settings; None: `DartConfig()`. budgets: numbers of visual tokens, of which one is drawn
    for every step in place of the config's budget, by the run's seed and the number of the step; None: the config's
    budget in all of them. The strategy `random` gets another seed for every step. Evaluations in between are pruned as
    the step before them. A training that ends by an exception calls no callback: use it in a `with`, or
    `DartTrainer`. Raises ValueError for an empty range of budgets; at the first step what `dart.prune` raises for a
    model or settings that do not fit.

    handle: of the model that is pruned now, else None.
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
        """The settings of a step of a run with this seed, see `uniform`."""
        config = self.config
        if config.strategy == "random":
            config = replace(config, seed=config.seed + step)
        if self.budgets is None:
            return config
        return replace(config, keep=drawn(self.budgets, seed, step), reduction_ratio=None)

    def attach(self, model: Any, config: DartConfig) -> None:
        """Prune `model` with these settings and no others. Raises what `dart.prune` raises."""
        if self.handle is None or self._attached != config:
            self.detach()
            self.handle, self._attached = prune(model, config), config

    def detach(self) -> None:
        """Take the pruning off, also after a training that failed. Calling it twice does nothing."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def figures(self) -> dict[str, float]:
        """For the log: `visual_tokens` before and `visual_tokens_kept` after the last stage; see `PruneHandle.last`.

        Means over the samples with images of this process's last batch that had some; {} before there is one.
        """
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

    pruning: None trains unpruned; all other arguments are the Trainer's. What is pruned is pruned no longer when
    `train` is left, by whichever way. The entries of the log with a loss have `DartCallback.figures` besides.
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
