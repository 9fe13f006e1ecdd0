"""The selection of `dart.strategies.spread` for all token groups of a batch, as Triton kernels.

Three launches make lengths, means and first scores; then each round is four: the best free tokens as candidates, the
candidates compared with one another, the best of them picked, every token compared with the picked ones. A last launch
writes positions down. They compute what the torch code does, in float32, and of equals the lower position goes first.

Shapes: as in `dart.kernels.device`, with one row of scores for a group. What belongs to a visual token (`scales`,
`quality`, `memory`, `scores`, `order`) lies where its position does in `positions`. `rounds`, in the layout of `pools`,
has one round's candidates: COUNT of them, whose `values` begin at SCORES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from dart.kernels.device import (
    COUNT,
    EPS,
    FIELDS,
    LARGEST_INT,
    PIVOTS,
    ROW,
    SCORES,
    STAGES,
    STRIDE,
    VISUAL,
    ordered,
    write_rows,
)
from dart.kernels.launch import always_of, fixed_parts, on_device, ranked, upload
from dart.strategies.base import Batch

ROWS, LENGTH_ROWS, LENGTH_COLUMNS = 16, 8, 1024
MEAN_ROWS, MEAN_COLUMNS = 64, 32
MIN_SLOTS, MAX_SLOTS = 16, 64  # tokens on the other side of a product
STEP_BYTES = 256  # of one row in one step of a product
ROUND_BLOCK = 1024
WIDE_WARPS = 8  # of programs that work alone on a sample


@triton.jit
def states_at(hidden, positions, fields, k, inside, batch_stride, token_stride):
    """Where the states of a group's visual tokens `k` begin, [ROWS, 1]."""
    position = tl.load(positions + tl.load(fields + VISUAL) + k, mask=inside, other=0).to(tl.int64)
    return hidden + tl.load(fields + ROW).to(tl.int64) * batch_stride + position[:, None] * token_stride


@triton.jit
def lengths_kernel(
    hidden, positions, pools, scales, batch_stride, token_stride, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """1 / the L2 norm of each visual token. Program (block of ROWS tokens, g)."""
    fields = pools + tl.program_id(1) * STRIDE
    first, count = tl.load(fields + VISUAL), tl.load(fields + COUNT)
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = k < count
    base = states_at(hidden, positions, fields, k, inside, batch_stride, token_stride)
    squares = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(0, width, COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(base + column[None, :], mask=inside[:, None] & (column < width)[None, :], other=0.0)
        squares += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
    tl.store(scales + first + k, 1 / tl.maximum(tl.sqrt(squares), EPS), mask=inside)


@triton.jit
def mean_kernel(
    hidden, positions, pools, scales, mean, batch_stride, token_stride, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The mean float32 [G, D] of a group's unit vectors. Program (block of COLUMNS, g)."""
    pool = tl.program_id(1)
    fields = pools + pool * STRIDE
    first, count = tl.load(fields + VISUAL), tl.load(fields + COUNT)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    base = hidden + tl.load(fields + ROW).to(tl.int64) * batch_stride + column[None, :]
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in tl.range(0, count, ROWS, num_stages=STAGES):
        k = start + tl.arange(0, ROWS)
        inside = k < count
        position = tl.load(positions + first + k, mask=inside, other=0).to(tl.int64)
        scale = tl.load(scales + first + k, mask=inside, other=0.0)
        real = inside[:, None] & (column < width)[None, :]
        x = tl.load(base + position[:, None] * token_stride, mask=real, other=0.0)
        total += tl.sum(x.to(tl.float32) * scale[:, None], 0)
    tl.store(mean + pool * width + column, total / tl.maximum(count, 1), mask=column < width)


@triton.jit
def score(quality, memory):
    """int32 that sorts the best token first."""
    return ordered(-(quality * (1 - memory)))


@triton.jit
def first_kernel(
    hidden, positions, pools, scales, mean, quality, memory, scores, batch_stride, token_stride, width,
    DISTINCT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Quality, memory and score of each visual token before the first round. Program (block of ROWS tokens, g)."""
    pool = tl.program_id(1)
    fields = pools + pool * STRIDE
    first, count = tl.load(fields + VISUAL), tl.load(fields + COUNT)
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = k < count
    base = states_at(hidden, positions, fields, k, inside, batch_stride, token_stride)
    products = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(0, width, COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, COLUMNS)
        real = column < width
        x = tl.load(base + column[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        y = tl.load(mean + pool * width + column, mask=real, other=0.0)
        products += tl.sum(x.to(tl.float32) * y[None, :], 1)
    common = products * tl.load(scales + first + k, mask=inside, other=0.0)
    own = tl.full((ROWS,), 1.0, tl.float32)
    if DISTINCT:
        own = 1 - common
    tl.store(quality + first + k, own, mask=inside)
    tl.store(memory + first + k, common, mask=inside)
    tl.store(scores + first + k, score(own, common), mask=inside)


@triton.jit
def similarities(
    hidden, scales, positions, left, left_inside, right, right_inside, token_stride, width,
    INTERPRETED: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Cosines float32 [ROWS, SLOTS] of a sample's tokens `left` and `right`, which are places in `positions`."""
    column = tl.arange(0, COLUMNS)
    x_token = tl.load(positions + left, mask=left_inside, other=0).to(tl.int64) * token_stride
    y_token = tl.load(positions + right, mask=right_inside, other=0).to(tl.int64) * token_stride
    products = tl.zeros((ROWS, SLOTS), tl.float32)
    for start in range(0, width, COLUMNS):
        real = start + column < width
        x_real, y_real = left_inside[:, None] & real[None, :], right_inside[None, :] & real[:, None]
        x = tl.load(hidden + x_token[:, None] + (start + column)[None, :], mask=x_real, other=0.0)
        y = tl.load(hidden + y_token[None, :] + (start + column)[:, None], mask=y_real, other=0.0)
        if INTERPRETED:  # it would multiply the bits of bfloat16
            products = tl.dot(x.to(tl.float32), y.to(tl.float32), products, input_precision="ieee")
        else:
            products = tl.dot(x, y, products, input_precision="ieee")
    x_scale = tl.load(scales + left, mask=left_inside, other=0.0)
    return products * x_scale[:, None] * tl.load(scales + right, mask=right_inside, other=0.0)[None, :]


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["rounds"])
def among_kernel(
    hidden, positions, pools, rounds, order, scales, quality, memory, state, values,
    batch_stride, token_stride, tokens, width,
    INTERPRETED: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`values` of a round's candidates, the first of `order`: each is compared with those before it, too.

    Program (block of ROWS candidates, g).
    """
    pool = tl.program_id(1)
    row, first = tl.load(pools + pool * STRIDE + ROW), tl.load(pools + pool * STRIDE + VISUAL)
    count = tl.load(rounds + pool * STRIDE + COUNT)
    begin = tl.program_id(0) * ROWS
    if begin < count:
        k = begin + tl.arange(0, ROWS)
        inside = k < count
        own = first + tl.load(order + first + k, mask=inside, other=0)
        base = hidden + row.to(tl.int64) * batch_stride
        nearest = tl.full((ROWS,), -1.0, tl.float32)
        for start in range(0, tl.minimum(begin + ROWS, count), SLOTS):
            j = start + tl.arange(0, SLOTS)
            there = j < count
            other = first + tl.load(order + first + j, mask=there, other=0)
            near = similarities(
                base, scales, positions, own, inside, other, there, token_stride, width,
                INTERPRETED, ROWS, SLOTS, COLUMNS,
            )  # fmt: skip
            nearest = tl.maximum(nearest, tl.max(tl.where(j[None, :] < k[:, None], near, -1.0), 1))
        nearest = tl.maximum(nearest, tl.load(memory + own, mask=inside, other=0.0))
        position = tl.load(positions + own, mask=inside, other=0)
        taken = tl.load(state + row * tokens + position, mask=inside, other=0) != 0
        value = score(tl.load(quality + own, mask=inside, other=0.0), nearest)
        target = values + tl.load(rounds + pool * STRIDE + SCORES) + k
        tl.store(target, tl.where(taken, LARGEST_INT, value), mask=inside)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["rounds", "takes"])
def remember_kernel(
    hidden, positions, pools, rounds, takes, order, picks, scales, quality, memory, scores, state,
    batch_stride, token_stride, tokens, width,
    FORGET: tl.constexpr, INTERPRETED: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Marks in `state` what the round picked, and compares every visual token with it.

    takes: int32 [G], tokens picked; picks: which of the candidates, from `rounds`' SCORES on. FORGET: what `memory`
    held before is as good as nothing. Program (block of ROWS tokens, g).
    """
    pool = tl.program_id(1)
    fields = pools + pool * STRIDE
    row, first, count = tl.load(fields + ROW), tl.load(fields + VISUAL), tl.load(fields + COUNT)
    begin, take = tl.program_id(0) * ROWS, tl.load(takes + pool)
    if (begin < count) & (take > 0):
        k = begin + tl.arange(0, ROWS)
        inside, own = k < count, first + k
        base = hidden + row.to(tl.int64) * batch_stride
        chosen = picks + tl.load(rounds + pool * STRIDE + SCORES)
        if FORGET:
            nearest = tl.full((ROWS,), -1.0, tl.float32)
        else:
            nearest = tl.load(memory + own, mask=inside, other=0.0)
        picked = tl.zeros((ROWS,), tl.int32)
        for start in range(0, take, SLOTS):
            j = start + tl.arange(0, SLOTS)
            there = j < take
            index = tl.load(order + first + tl.load(chosen + j, mask=there, other=0), mask=there, other=0)
            near = similarities(
                base, scales, positions, own, inside, first + index, there, token_stride, width,
                INTERPRETED, ROWS, SLOTS, COLUMNS,
            )  # fmt: skip
            nearest = tl.maximum(nearest, tl.max(tl.where(there[None, :], near, -1.0), 1))
            same = there[None, :] & (index[None, :] == k[:, None])
            picked = tl.maximum(picked, tl.max(same.to(tl.int32), 1))
        mark = state + row * tokens + tl.load(positions + own, mask=inside, other=0)
        tl.store(mark, 1, mask=inside & (picked != 0))
        taken = (picked != 0) | (tl.load(mark, mask=inside, other=0) != 0)
        tl.store(memory + own, nearest, mask=inside)
        value = score(tl.load(quality + own, mask=inside, other=0.0), nearest)
        tl.store(scores + own, tl.where(taken, LARGEST_INT, value), mask=inside)


@triton.jit(do_not_specialize=["tokens", "left"])
def rows_kernel(state, padding, rows, tokens, left, BLOCK: tl.constexpr):
    """The positions with a state, int64 [B, left]; padding: int32 [B]. Program (row)."""
    row = tl.program_id(0)
    write_rows(state + row * tokens, rows + row.to(tl.int64) * left, tl.load(padding + row), tokens, BLOCK)


@dataclass(frozen=True)
class States:
    """What one run knows of the visual tokens; `state` is of all positions, [B, S]."""

    hidden: torch.Tensor
    state: torch.Tensor
    scales: torch.Tensor
    quality: torch.Tensor
    memory: torch.Tensor
    scores: torch.Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        """Strides of a sample and of a token, positions, and the width of a state."""
        return *self.hidden.stride()[:2], self.hidden.shape[1], self.hidden.shape[2]

    def product(self, others: int) -> dict[str, Any]:
        """What `similarities` is compiled for, when a token is compared with `others`."""
        slots = min(MAX_SLOTS, max(MIN_SLOTS, triton.next_power_of_2(others)))
        columns = STEP_BYTES // self.hidden.element_size()
        return {"INTERPRETED": self.hidden.device.type == "cpu", "ROWS": ROWS, "SLOTS": slots, "COLUMNS": columns}


@dataclass(frozen=True)
class Spreading:
    """One batch's plan on the device. `run` may be called again, and recorded as a CUDA graph, for prompts alike.

    positions, pools, padding, always: what `dart.kernels.device` says; rounds: int32 [R, G, FIELDS]; candidates, takes:
    int32 [R, G, 1], tokens that a round looks at and takes; counts: visual tokens of each group; looks: `candidates` on
    the host; most: tokens that a round takes at most; left: positions that stay in the widest row; mean, distinct: the
    strategy's options.
    """

    positions: torch.Tensor
    pools: torch.Tensor
    rounds: torch.Tensor
    candidates: torch.Tensor
    takes: torch.Tensor
    padding: torch.Tensor
    always: torch.Tensor
    counts: list[int]
    looks: list[list[int]]
    most: int
    left: int
    mean: bool
    distinct: bool

    @classmethod
    def of(cls, batch: Batch, rounds: int | None, ahead: int, mean: bool, distinct: bool) -> Spreading:
        """Everything goes to the device in one copy. The rest are the strategy's options."""
        groups = [(row, group) for row, of_row in enumerate(batch.groups) for group in of_row]
        keeps = np.array([group.keep for _, group in groups])
        numbers = np.minimum(keeps if rounds is None else rounds, keeps)
        number = np.arange(numbers.max())[:, None]
        takes = np.where(number < numbers, keeps // numbers.clip(1) + (number < keeps % numbers.clip(1)), 0)
        counts = np.array([group.visual.size for _, group in groups])
        looks = np.minimum(takes * ahead, counts)
        rows = [row for row, _ in groups]
        parts = [
            np.concatenate([group.visual for _, group in groups]),
            _table(rows, counts),
            np.array([_table(rows, each) for each in looks]),
            looks[..., None],
            takes[..., None],
            *fixed_parts(batch),
        ]
        places, pools, later, candidates, taken, padding, words = upload(parts, batch.hidden.device)
        return cls(
            positions=places,
            pools=pools,
            rounds=later,
            candidates=candidates,
            takes=taken,
            padding=padding,
            always=always_of(words, batch),
            counts=counts.tolist(),
            looks=looks.tolist(),
            most=int(takes.max(initial=0)),
            left=max(batch.widths),
            mean=mean,
            distinct=distinct,
        )

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """LongTensor [B, left] of the positions that stay; hidden: [B, S, D]."""
        hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
        with on_device(hidden.device):
            states = self._first(hidden)
            for number in range(len(self.looks)):
                self._round(number, states)
            size, tokens = states.state.shape
            rows = torch.empty(size, self.left, dtype=torch.int64, device=hidden.device)
            rows_kernel[size,](
                states.state, self.padding, rows, tokens, self.left, BLOCK=ROUND_BLOCK, num_warps=WIDE_WARPS
            )
            return rows

    def _grid(self, rows: int) -> tuple[int, int]:
        """Blocks of `rows` visual tokens, of every group."""
        return triton.cdiv(max(self.counts), rows), len(self.counts)

    def _first(self, hidden: torch.Tensor) -> States:
        """As everything is before the first round."""
        total, width, strides = sum(self.counts), hidden.shape[-1], hidden.stride()[:2]
        scales, quality, memory, scores = torch.empty(4, total, device=hidden.device)
        states = States(hidden, self.always.clone(), scales, quality, memory, scores.view(torch.int32))
        mean = torch.empty(len(self.counts), width, device=hidden.device)
        blocks = {"ROWS": LENGTH_ROWS, "COLUMNS": min(LENGTH_COLUMNS, triton.next_power_of_2(width))}
        lengths_kernel[self._grid(LENGTH_ROWS)](hidden, self.positions, self.pools, scales, *strides, width, **blocks)
        mean_kernel[triton.cdiv(width, MEAN_COLUMNS), len(self.counts)](
            hidden, self.positions, self.pools, scales, mean, *strides, width, ROWS=MEAN_ROWS, COLUMNS=MEAN_COLUMNS
        )
        first_kernel[self._grid(LENGTH_ROWS)](
            hidden,
            self.positions,
            self.pools,
            scales,
            mean,
            quality,
            memory,
            states.scores,
            *strides,
            width,
            DISTINCT=self.distinct,
            **blocks,
        )
        return states

    def _round(self, number: int, states: States) -> None:
        """Writes `memory`, `scores` and `state` anew."""
        looks, rounds = self.looks[number], self.rounds[number]
        order = ranked(self.pools, self.candidates[number], states.scores, [(count, 1) for count in self.counts])
        values = states.scores.new_empty(sum(looks))
        among_kernel[triton.cdiv(max(looks), ROWS), len(looks)](
            states.hidden,
            self.positions,
            self.pools,
            rounds,
            order,
            states.scales,
            states.quality,
            states.memory,
            states.state,
            values,
            *states.sizes,
            **states.product(max(looks)),
        )
        picks = ranked(rounds, self.takes[number], values, [(count, 1) for count in looks])
        remember_kernel[self._grid(ROWS)](
            states.hidden,
            self.positions,
            self.pools,
            rounds,
            self.takes[number],
            order,
            picks,
            states.scales,
            states.quality,
            states.memory,
            states.scores,
            states.state,
            *states.sizes,
            FORGET=number == 0 and not self.mean,
            **states.product(self.most),
        )


def _table(rows: list[int], counts: np.ndarray) -> np.ndarray:
    """`pools` of groups in these rows of the batch, with `counts` things each, one behind the other."""
    table, begin = np.zeros((len(counts), FIELDS), dtype=np.int64), counts.cumsum() - counts
    for field, values in ((ROW, rows), (COUNT, counts), (VISUAL, begin), (PIVOTS, 1), (SCORES, begin)):
        table[:, field.value] = values
    return table
