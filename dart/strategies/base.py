"""The contract of a strategy: where it acts, what it looks at, what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from dart.config import DartConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from dart.engine.signals import Signals


@dataclass(frozen=True)
class Stage:
    """A place where tokens are dropped.

    layer: before this decoder layer; 0: before the LLM, on the embeddings. fraction: of a token group's first size that
    stays here, times a factor that the budget sets for all stages alike; None: the budget alone decides (one stage).
    """

    layer: int
    fraction: float | None = None


@dataclass(frozen=True)
class Merge:
    """Dropped tokens added to kept ones: for each k, `weights[k]` times the state at `sources[k]` is added to `own[j]`
    times the state at `keep[j]`, where `targets[k]` = j.

    sources, targets: LongTensor [m]; weights: float [m]; own: float [kept].
    """

    sources: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    own: torch.Tensor


@dataclass(frozen=True)
class Reduction:
    """keep: LongTensor [kept] of positions, ascending; merge: what becomes of the others (None: nothing)."""

    keep: torch.Tensor
    merge: Merge | None = None


@dataclass(frozen=True)
class GroupPlan:
    """What the host knows of one token group before its selection.

    visual, text: int64 arrays [N], [M] of ascending positions; budget: tokens asked for; keep: tokens to keep (< N);
    start: the first position that is no padding in front; forced: pivots in visiting order, or None; number: of the
    group's visual span, 0 for all of them together: the same at every stage.
    """

    visual: np.ndarray
    text: np.ndarray
    budget: float
    keep: int
    start: int = 0
    forced: list[int] | None = None
    number: int = 0


@dataclass(frozen=True)
class Tokens:
    """One token group: the visual tokens of a sample that share one budget, and the text after them.

    visual: LongTensor [N], ascending positions in the sample; text: LongTensor [M], positions of the text after the
    last image; keep: how many visual tokens stay; signals: see `dart.engine.signals`; plan: the same on the host.
    rows: the stretch of the sample that the visual tokens lie in: of many images each costs no more than its own.
    stage: the number of the strategy's stage that this is, from 0.
    """

    visual: torch.Tensor
    text: torch.Tensor
    signals: Signals
    config: DartConfig
    plan: GroupPlan
    stage: int = 0
    rows: slice = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", slice(int(self.plan.visual[0]), int(self.plan.visual[-1]) + 1))

    @property
    def keep(self) -> int:
        """How many of `visual` stay."""
        return self.plan.keep

    @property
    def memory(self) -> dict[str, Any]:
        """What the strategy wrote down for this token group at an earlier stage of this forward; it may add to it.

        Positions change from stage to stage; text after the images keeps its distance to the end of the sample.
        """
        return self.signals.memory.setdefault(self.plan.number, {})


@dataclass(frozen=True)
class Batch:
    """All token groups of all samples of one forward, for a strategy that reduces them at once.

    hidden: [B, S, D], to which `norm` (the model's final one, or None) is still to be applied; keys: [B, H, S, Dh].
    groups: of every sample; always: bool array [B, S] of the positions that stay in any case; kernels: who may select
    (`dart.kernels`).
    """

    hidden: torch.Tensor
    norm: Any
    keys: torch.Tensor
    groups: list[list[GroupPlan]]
    always: np.ndarray
    kernels: str = "torch"

    @cached_property
    def widths(self) -> list[int]:
        """How many positions stay, per sample."""
        fixed = self.always.sum(1).tolist()
        return [count + sum(group.keep for group in row) for count, row in zip(fixed, self.groups, strict=True)]


class Strategy:
    """One method: a class in a file of this folder, with a name, a docstring (paper, equations, defaults, deviations).

    needs: names of the signals it reads (`dart.engine.signals.NAMES`): the engine provides them or refuses. All have a
    row for each token of the sample: `tokens.signals.raw[tokens.visual]` are the group's own.
    options: defaults of its own settings (`DartConfig.options`).
    question_aware: does what stays depend on the text after the image by other signals than `OF_QUESTION`?
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    options: ClassVar[dict[str, Any]] = {}
    question_aware: ClassVar[bool] = False

    def stages(self, config: DartConfig, layers: int) -> tuple[Stage, ...]:
        """Where it drops tokens, of a decoder of `layers` layers. By default once, at `config.layer`; nowhere: ().

        Raises ValueError for options that name no such place.
        """
        return (Stage(config.layer),)

    def needed(self, config: DartConfig) -> frozenset[str]:
        """`needs` with these settings."""
        return self.needs

    def pixels(self, image: Image, config: DartConfig) -> Image:
        """What `PruneHandle.prepare` makes of a PIL image before the processor sees it. By default the image itself."""
        return image

    def count(self, config: DartConfig, tokens: int, budget: float, texts: int | None = None) -> int:
        """How many of `tokens` visual tokens stay for a budget; texts: how many text tokens come after the image.

        Exactly the budget by default. With `exact=False`, as many as DART keeps with these settings.
        """
        if config.exact is False:
            return config.plan(tokens, budget, texts)[0]
        return min(tokens, int(budget))

    def reduce(self, tokens: Tokens) -> Reduction:
        """Choose `tokens.keep` of `tokens.visual`.

        Returns a `Reduction` whose `keep` is a LongTensor [tokens.keep] of positions out of `tokens.visual`, ascending,
        on its device. The engine refuses anything else by the strategy's name. Called once for each token group of each
        stage from which something goes: tokens.keep < len(tokens.visual).
        """
        raise NotImplementedError

    def reduce_batch(self, batch: Batch, config: DartConfig) -> torch.Tensor | None:
        """LongTensor [B, max(widths)] of the positions that stay, ascending, -1 in front; None: one group at a time."""
        return None

    def option(self, config: DartConfig, name: str) -> Any:
        """The value of an option of its own: the caller's, else the default in `options`."""
        return config.options.get(name, self.options[name])


def with_forced(config: DartConfig, forced: list[int] | None, visual: np.ndarray) -> DartConfig:
    """The settings with as many pivots of each kind as are forced on the group of the positions `visual`."""
    if forced is None:
        return config
    images = int(np.isin(forced, visual).sum())
    return replace(config, image_pivots=images, text_pivots=len(forced) - images)


def at_depth(name: str, depth: float) -> str:
    """The name of the vision tower's signal `name` in another layer than that whose states are used: the one at `depth`
    of the tower, in (0, 1], counted as a part of its layers."""
    return f"{name}@{depth:.6g}"


def highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [count] of the highest `scores` [N], ascending; of equals the first ones."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def pyramid(name: str, places: Sequence[float], fractions: Sequence[float], layers: int) -> tuple[Stage, ...]:
    """Stages of the strategy `name` at `places`, parts of the depth of a decoder of `layers` layers, where `fractions`
    of the first tokens stay, times the budget's one factor. In a shallow decoder each stage is at least one layer
    behind the one before. Raises ValueError for what makes no pyramid.
    """
    good = len(places) == len(fractions) > 0 and all(0 < each <= 1 for each in (*places, *fractions))
    if not good or list(fractions) != sorted(fractions, reverse=True) or list(places) != sorted(places):
        raise ValueError(
            f"options places and fractions of strategy {name!r} must be equally long, in (0, 1], the places rising and "
            f"the fractions falling, got {places} and {fractions}"
        )
    stages: list[Stage] = []
    for place, fraction in zip(places, fractions, strict=True):
        first = stages[-1].layer + 1 if stages else 1
        stages.append(Stage(max(first, round(place * layers)), float(fraction)))
    return tuple(stages)


def first_highest(scores: torch.Tensor) -> torch.Tensor:
    """LongTensor [1]: the place of the highest score, the first one of equals, without a wait for the device."""
    places = torch.arange(len(scores), device=scores.device)
    return torch.where(scores == scores.max(), places, len(scores)).min()[None]


def greedy(
    gains: torch.Tensor,
    count: int,
    after: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Indices [count], ascending: again and again the one with the highest of the finite `gains` [N], the first of
    equals.

    after(place): the gains [N] that follow once `place`, LongTensor [1], is taken. start: different indices that are
    taken first. Nothing is taken twice, and nothing waits for the device.
    """
    taken = torch.zeros_like(gains, dtype=torch.bool)
    chosen = [torch.zeros(0, dtype=torch.long, device=gains.device)]
    for number in range(count):
        given = start is not None and number < len(start)
        chosen.append(start[number, None] if given else first_highest(gains.masked_fill(taken, -torch.inf)))  # type: ignore[index]
        taken[chosen[-1]] = True
        if number + 1 < count:
            gains = after(chosen[-1])
    return torch.cat(chosen).sort().values


REGISTRY: dict[str, Strategy] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator: `@register("mine")` makes `DartConfig(strategy="mine")` work.

    A class that is defined anew, in a notebook's cell or a reloaded file, takes the place of its former self. Raises
    TypeError for a class that is no `Strategy`, and ValueError for a name that another class has.
    """

    def add(cls: type) -> type:
        if not issubclass(cls, Strategy):
            raise TypeError(f"strategy {name!r}: {cls.__qualname__} must be a subclass of dart.strategies.Strategy")
        other = type(REGISTRY.get(name))
        if name in REGISTRY and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"strategy {name!r} is already registered by {other.__module__}.{other.__qualname__}; "
                "choose another name"
            )
        REGISTRY[name] = cls()
        return cls

    return add
