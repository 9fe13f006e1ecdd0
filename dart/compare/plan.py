"""The rows of a comparison: which method at which budget, and what it asks of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dart import strategies
from dart.config import DartConfig
from dart.engine import tower
from dart.strategies import Strategy
from dart.utils import UserError

UNPRUNED, BLIND, RANDOM = "unpruned", "blind", "random"
CONTROLS = (RANDOM, "uniform", "pooling")  # of pruning; always in
OF_QUESTION = frozenset({"attention", "next_attention", "question", tower.CLIP})  # signals
TOLERANCE = 0.05  # of the budget, and at least a token: how far a row may be off it and still be compared

Budget = int | float


@dataclass(frozen=True)
class Rules:
    """What holds for all rows. budgets: tokens, or shares of a sample's tokens."""

    budgets: Sequence[Budget]
    budget_kind: str
    layer: int
    scope: str = "span"
    seeds: Sequence[int] = (0, 1, 2)

    def config(self, method: str, budget: Budget, seed: int | None) -> DartConfig:
        """The settings of one method at one budget; seed None: 0."""
        return DartConfig(
            keep=budget,
            layer=self.layer,
            strategy=method,
            scope=self.scope,
            exact=True,
            seed=seed or 0,
            budget_kind=self.budget_kind,
        )

    def reached(self, per_layer: Sequence[int]) -> float:
        """Of the visual tokens in each layer, the number that the budget is one of."""
        if self.budget_kind == "mean-over-layers":
            return sum(per_layer) / len(per_layer)
        return per_layer[0 if self.budget_kind == "pre-llm" else -1]


@dataclass(frozen=True)
class Setting:
    """One method at one budget (None: all tokens), with one seed where it draws at random."""

    method: str
    budget: Budget | None = None
    seed: int | None = None

    @property
    def key(self) -> str:
        """Its name in the answers' files."""
        return cell_key(self.method, self.budget) + ("" if self.seed is None else f"#{self.seed}")


def cell_key(method: str, budget: Budget | None) -> str:
    """A cell's name, `method@budget`; the method's alone for all tokens."""
    return method if budget is None else f"{method}@{budget:g}"


def methods_of(text: str, baseline: str) -> list[str]:
    """`all`, or names with commas between; with the baseline and the controls. Raises ValueError for an unknown one."""
    strategies.get(baseline)
    if text == "all":
        return strategies.available()
    named = [name.strip() for name in text.split(",") if name.strip()]
    if not named:
        raise UserError(f"--methods {text!r} names none: expected all, or names with commas between")
    for name in named:
        strategies.get(name)
    return list(dict.fromkeys([baseline, *named, *CONTROLS]))


def settings_of(methods: Sequence[str], rules: Rules) -> list[Setting]:
    """Unpruned, blind, then every budget with every method; a row for each seed of the random one."""
    settings = [Setting(UNPRUNED), Setting(BLIND)]
    for budget in rules.budgets:
        for method in methods:
            seeds = rules.seeds if method == RANDOM else [None]
            settings += [Setting(method, budget, seed) for seed in seeds]
    return settings


def changes_pixels(method: str) -> bool:
    """Does the method make other images of the images?"""
    return type(strategies.get(method)).pixels is not Strategy.pixels


def reads_tower(config: DartConfig) -> bool:
    """Does the method look into the vision tower while it runs?"""
    return tower.reads_tower(strategies.get(config.strategy).needed(config))


def asks_question(method: str) -> bool:
    """Does what the method keeps depend on the question? Such a choice serves no other question."""
    strategy = strategies.get(method)
    return strategy.question_aware or bool(strategy.needed(DartConfig(strategy=method)) & OF_QUESTION)
