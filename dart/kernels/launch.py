"""From a batch's plan to the kernels' arguments. Sizes, offsets and grids are the host's: it waits for no launch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from dart.config import DartConfig
from dart.engine.host import to_device
from dart.engine.norms import norm_in_blocks, rms_norm
from dart.kernels import device as kernels
from dart.strategies.base import Batch, GroupPlan
from dart.strategies.dart import pivot_plan

MIN_SLOTS = 16  # pivots: the smallest side of a matrix product
NORM_ROWS, NORM_COLUMNS = 8, 1024
PIVOT_BLOCK = 4096
SCORE_ROWS, SCORE_BYTES = 16, 512  # of one row in one step
RANK_ROWS, RANK_BLOCK = 64, 64
ROUND_BLOCK = 1024
GATHER_BLOCK = 1024
WIDE_WARPS = 8  # of programs that work alone on a pool
# Up to here all pairs of tokens are compared; a radix sort of more is cheaper (docs/kernels.md).
RANK_LIMIT = 8192
INT_BYTES, ALIGNED_INTS = 4, 4


class _Table:
    """The rows of `pools`, `takes` and `limits`, and the positions that they point into."""

    def __init__(self, slots: int):
        self.slots = slots
        self.positions: list[np.ndarray] = []
        self.pools: list[list[int]] = []
        self.takes: list[list[int]] = []
        self.counts: list[tuple[int, int]] = []
        self._end = self._scores = 0

    def add(self, row: int, pools: list[GroupPlan], config: DartConfig) -> None:
        """The pools of one row of the batch. A row without any gets an empty one, whose program writes it down."""
        texts = self._append(pools[0].text) if pools else 0
        for pool in pools:
            images, takes = pivot_plan(config, pool)
            count, pivots = pool.visual.size, len(takes)
            place = (row, self._append(pool.visual), count, texts, pool.text.size)
            self._put([*place, images, pivots, self._scores, len(pools)], takes)
            self._scores += count * pivots
        if not pools:
            self._put([row, 0, 0, 0, 0, 0, 0, 0, 1], [])

    def _append(self, positions: np.ndarray) -> int:
        """Where they begin."""
        self.positions.append(positions)
        self._end += positions.size
        return self._end - positions.size

    def _put(self, fields: list[int], takes: list[int]) -> None:
        self.pools.append(fields)
        self.takes.append(takes + [0] * (self.slots - len(takes)))
        self.counts.append((fields[2], len(takes)))


@dataclass(frozen=True)
class Selection:
    """One batch's plan on the device. `run` may be called again, and recorded as a CUDA graph, for prompts alike.

    positions, pools, takes, limits, padding, always: what `dart.kernels.device` says; counts: visual tokens and pivots
    of each pool; left: positions that stay in the widest row.
    """

    positions: torch.Tensor
    pools: torch.Tensor
    takes: torch.Tensor
    limits: torch.Tensor
    padding: torch.Tensor
    always: torch.Tensor
    counts: list[tuple[int, int]]
    left: int

    @classmethod
    def of(cls, batch: Batch, config: DartConfig) -> Selection:
        """Everything goes to the device in one copy."""
        most = max((len(pivot_plan(config, group)[1]) for row in batch.groups for group in row), default=0)
        table = _Table(triton.next_power_of_2(max(MIN_SLOTS, most)))
        for row, groups in enumerate(batch.groups):
            table.add(row, groups, config)
        takes = np.array(table.takes)
        parts = [
            np.concatenate([np.zeros(0, dtype=np.int64), *table.positions]),
            np.array(table.pools),
            takes,
            takes.cumsum(1),
            *fixed_parts(batch),
        ]
        positions, pools, taken, limits, padding, words = upload(parts, batch.hidden.device)
        always = always_of(words, batch)
        return cls(positions, pools, taken, limits, padding, always, table.counts, max(batch.widths))

    def run(self, hidden: torch.Tensor, norm: Any, keys: torch.Tensor) -> torch.Tensor:
        """LongTensor [B, left] of the positions that stay; see `Batch` for the arguments."""
        hidden, keys = (each if each.stride(-1) == 1 else each.contiguous() for each in (hidden, keys))
        with on_device(hidden.device):
            state, norms, finished = self._norms(keys)
            pivots = self._pivots(norms, state)
            scores = self._scores(hidden, norm, pivots, state)
            order = ranked(self.pools, self.limits, scores, self.counts)
            return self._rounds(order, state, finished)

    @property
    def _slots(self) -> int:
        return self.takes.shape[1]

    def _new(self, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.pools.device)

    def _norms(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """K-norms float32 [B, S], the state uint8 [B, S] and finished pools int32 [B], both as they begin."""
        size, heads, tokens, width = keys.shape
        state, norms = torch.empty_like(self.always), self._new(size, tokens, dtype=torch.float32)
        finished = self._new(size)
        kernels.norms_kernel[triton.cdiv(tokens, NORM_ROWS), size](
            keys,
            norms,
            self.always,
            state,
            finished,
            *keys.stride()[:3],
            tokens,
            heads * width,
            HEAD=width,
            ROWS=NORM_ROWS,
            COLUMNS=min(NORM_COLUMNS, triton.next_power_of_2(heads * width)),
        )
        return state, norms, finished

    def _pivots(self, norms: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """int32 [G, slots]; those among the visual tokens are marked in `state`."""
        pivots = self._new(len(self.counts), self._slots)
        kernels.pivots_kernel[len(self.counts),](
            norms,
            self.positions,
            self.pools,
            pivots,
            state,
            norms.shape[1],
            SLOTS=self._slots,
            BLOCK=PIVOT_BLOCK,
            num_warps=WIDE_WARPS,
        )
        return pivots

    def _scores(self, hidden: torch.Tensor, norm: Any, pivots: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Of each pool [pivots, tokens], one pool behind the other, int32."""
        weight, eps, fused = hidden, 0.0, None if norm is None else rms_norm(norm, hidden)
        if fused is not None:
            weight, eps = fused
        elif norm is not None:
            hidden = norm_in_blocks(norm, hidden)
        scores = self._new(sum(count * pivots for count, pivots in self.counts))
        widest = max(count for count, _ in self.counts)
        kernels.scores_kernel[triton.cdiv(widest, SCORE_ROWS), len(self.counts)](
            hidden,
            weight,
            eps,
            self.positions,
            self.pools,
            pivots,
            state,
            scores,
            *hidden.stride()[:2],
            state.shape[1],
            hidden.shape[-1],
            NORM=fused is not None,
            INTERPRETED=hidden.device.type == "cpu",
            SLOTS=self._slots,
            ROWS=SCORE_ROWS,
            COLUMNS=SCORE_BYTES // hidden.element_size(),
        )
        return scores

    def _rounds(self, order: torch.Tensor, state: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
        rows = self._new(len(state), self.left, dtype=torch.int64)
        kernels.rounds_kernel[len(self.counts),](
            self.positions,
            self.pools,
            self.takes,
            self.limits,
            order,
            state,
            finished,
            self.padding,
            rows,
            state.shape[1],
            self.left,
            SLOTS=self._slots,
            BLOCK=ROUND_BLOCK,
            num_warps=WIDE_WARPS,
        )
        return rows


def ranked(
    pools: torch.Tensor, limits: torch.Tensor, scores: torch.Tensor, counts: list[tuple[int, int]]
) -> torch.Tensor:
    """int32 like `scores`: for each group and pivot, the indices of its lowest scores, ascending, `limits` of them.

    limits: int32 [G, slots]; counts: of each group the scores of a pivot, and its pivots.
    """
    widest = max(count for count, _ in counts)
    if widest > RANK_LIMIT:
        parts = zip(scores.split([count * pivots for count, pivots in counts]), counts, strict=True)
        rows = [part.view(-1, count) for part, (count, _) in parts if part.numel()]
        return torch.cat([row.sort(stable=True).indices.int().flatten() for row in rows])
    order = torch.empty_like(scores)
    kernels.ranks_kernel[triton.cdiv(widest, RANK_ROWS), max(pivots for _, pivots in counts), len(counts)](
        pools,
        limits,
        scores,
        order,
        SLOTS=limits.shape[1],
        ROWS=RANK_ROWS,
        BLOCK=RANK_BLOCK,
    )
    return order


def gather(
    rows: torch.Tensor, hidden: torch.Tensor, angles: tuple[torch.Tensor, ...] | None, positions: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, torch.Tensor | None]:
    """Gather rows: LongTensor [B, n]; hidden [B, S, D]; angles: cos and sin, [..., B or 1, S, h];
    positions: LongTensor [..., B or 1, S]."""
    size, left = rows.shape
    hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    out = hidden.new_empty(size, left, hidden.shape[-1])
    cos, sin = (hidden[:0], hidden[:0]) if angles is None else (each.contiguous() for each in angles)
    places = rows[:0] if positions is None else positions.contiguous()
    angle_shape = (*cos.shape[:-3], size, left, cos.shape[-1])
    turned = () if angles is None else (cos.new_empty(angle_shape), sin.new_empty(angle_shape))
    placed = None if positions is None else places.new_empty(*places.shape[:-2], size, left)
    angle_strides = _strides(cos.shape[:-1], cos.shape[-1]) if turned else (0, 0, 0, 0)
    place_strides = _strides(places.shape, 1) if placed is not None else (0, 0, 0, 0)
    with on_device(hidden.device):
        kernels.gather_kernel[left, size](
            rows,
            left,
            hidden,
            out,
            *hidden.stride()[:2],
            hidden.shape[-1],
            cos,
            sin,
            *(turned or (out, out)),
            *angle_strides,
            cos.shape[-1],
            places,
            rows if placed is None else placed,
            *place_strides,
            BLOCK=min(GATHER_BLOCK, triton.next_power_of_2(hidden.shape[-1])),
            ANGLE_BLOCK=triton.next_power_of_2(cos.shape[-1]),
        )
    return out, turned or None, placed


def _strides(shape: torch.Size, width: int) -> tuple[int, int, int, int]:
    """(axes, and strides of an axis, a row of the batch and a token) of a contiguous [..., B or 1, S] of `width`."""
    axes, size, tokens = int(np.prod(shape[:-2])), shape[-2], shape[-1]
    return axes, size * tokens * width, 0 if size == 1 else tokens * width, width


def fixed_parts(batch: Batch) -> list[np.ndarray]:
    """What every plan has to `upload`: empty slots in front of each row, and `always` as whole words."""
    flags = np.zeros(-(-batch.always.size // INT_BYTES) * INT_BYTES, dtype=np.uint8)
    flags[: batch.always.size] = batch.always.ravel()
    return [max(batch.widths) - np.array(batch.widths), flags.view(np.int32)]


def always_of(words: torch.Tensor, batch: Batch) -> torch.Tensor:
    """uint8 [B, S] of the uploaded words."""
    return words.view(torch.uint8)[: batch.always.size].view(batch.always.shape)


def upload(parts: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The parts as int32 on the device, each of them aligned: Triton compiles anew for pointers that are not."""
    sizes = [-(-part.size // ALIGNED_INTS) * ALIGNED_INTS for part in parts]
    packed = np.zeros(sum(sizes), dtype=np.int32)
    for part, end, size in zip(parts, np.cumsum(sizes), sizes, strict=True):
        packed[end - size : end - size + part.size] = part.ravel()
    pieces = zip(to_device(packed, device).split(sizes), parts, strict=True)
    return [piece[: part.size].view(part.shape) for piece, part in pieces]


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
