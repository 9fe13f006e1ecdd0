"""What a strategy is given (`Pool`) and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from dart.config import DartConfig
from dart.final_norm import norm_in_blocks


@dataclass(frozen=True)
class PoolPlan:
    """What the host knows of one pool before its selection.

    visual, text: int64 arrays [N], [M] of ascending positions; kept: tokens to keep (< N); image_pivots: pivots among
    the visual tokens; takes: tokens each visited pivot takes; start: the first position that is no padding in front;
    forced: pivots in visiting order, or None.
    """

    visual: np.ndarray
    text: np.ndarray
    kept: int
    image_pivots: int
    takes: list[int]
    start: int = 0
    forced: list[int] | None = None


class States:
    """The hidden states of one sample behind the model's final norm, made as they are asked for.

    raw: [S, D], before the norm; norm: the module, or None for states that have been normalised.
    """

    def __init__(self, raw: torch.Tensor, norm: Any):
        self.raw, self.norm = raw, norm

    @cached_property
    def all(self) -> torch.Tensor:
        """[S, D]."""
        return norm_in_blocks(self.norm, self.raw[None])[0]

    def rows(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some of them [n, D], a LongTensor of positions or a stretch; the others are not made."""
        part = self.raw[rows] if isinstance(rows, slice) else self.raw.index_select(0, rows)
        return part if self.norm is None else self.norm(part[None])[0]


@dataclass(frozen=True)
class Pool:
    """The visual tokens of one sample that share one budget, and the text behind them.

    states: hidden states of the sample, `hidden` all of them: [S, D], final norm applied; keys: [H, S, Dh] after RoPE.
    visual: LongTensor [N], ascending positions; text: LongTensor [M], positions of the text after the picture.
    kept, image_pivots, takes, start, forced: as in `PoolPlan`.
    rows: the part of the sample that the visual tokens lie in; of many pictures each costs no more than its own.
    """

    states: States
    keys: torch.Tensor
    visual: torch.Tensor
    text: torch.Tensor
    kept: int
    image_pivots: int
    takes: list[int]
    start: int
    forced: list[int] | None
    rows: slice

    @classmethod
    def of(cls, plan: PoolPlan, states: States, keys: torch.Tensor, visual: torch.Tensor, text: torch.Tensor) -> Pool:
        """visual, text: the plan's, on the device."""
        rows = slice(int(plan.visual[0]), int(plan.visual[-1]) + 1)
        counts = (plan.kept, plan.image_pivots, plan.takes, plan.start, plan.forced)
        return cls(states, keys, visual, text, *counts, rows)

    @property
    def hidden(self) -> torch.Tensor:
        return self.states.all

    @property
    def first_row(self) -> int:
        """The position that `rows` begins at."""
        return self.rows.start


@dataclass(frozen=True)
class Batch:
    """All pools of all samples of one forward.

    hidden: [B, S, D], to which `norm` (the model's final one, or None) is still to be applied; keys: [B, H, S, Dh].
    pools: of every sample; always: bool array [B, S] of the positions that stay in any case.
    """

    hidden: torch.Tensor
    norm: Any
    keys: torch.Tensor
    pools: list[list[PoolPlan]]
    always: np.ndarray

    @cached_property
    def widths(self) -> list[int]:
        """How many positions stay, per sample."""
        fixed = self.always.sum(1).tolist()
        return [count + sum(pool.kept for pool in row) for count, row in zip(fixed, self.pools, strict=True)]


class Strategy(Protocol):
    """`__call__(pool, config)` -> LongTensor [pool.kept] of positions, any order, without repeats.

    A strategy may also have `batched(batch, config)`, which selects for a whole `Batch`: LongTensor [B, max(widths)] of
    the positions that stay, ascending, `PADDING` in front; or None where it does not, and the pools come one by one.
    """

    def __call__(self, pool: Pool, config: DartConfig) -> torch.Tensor: ...


REGISTRY: dict[str, Strategy] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator: `@register("mine")` makes `DartConfig(strategy="mine")` work. A name can be taken once."""

    def add(cls: type) -> type:
        if name in REGISTRY:
            other = type(REGISTRY[name])
            raise ValueError(
                f"strategy {name!r} is already registered by {other.__module__}.{other.__qualname__}; "
                "choose another name"
            )
        REGISTRY[name] = cls()
        return cls

    return add
