"""The selection of `dart.strategies.dart` for all pools of a batch, as Triton kernels.

Five launches, each of which needs all of the one before: norms, pivots, scores, ranks, rounds. A sixth gathers. They
compute what the torch code does, in float32, and of equals the lower position goes first.

Shapes: G pools, in rows of a batch of B; pool g has COUNT visual tokens, PIVOTS pivots. `pools` int32 [G, FIELDS] has
the columns below; positions are int32. What changes from prompt to prompt is not specialised on: one compilation serves
all. Scores and orders are [PIVOTS, COUNT] for each pool, one behind the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = 9
ROW = tl.constexpr(0)  # the row of the batch
VISUAL = tl.constexpr(1)  # where its positions begin in `positions`
COUNT = tl.constexpr(2)
TEXT = tl.constexpr(3)  # where the positions of the text behind it begin
TEXTS = tl.constexpr(4)  # their number
IMAGE_PIVOTS = tl.constexpr(5)
PIVOTS = tl.constexpr(6)
SCORES = tl.constexpr(7)  # where its scores begin
SHARED = tl.constexpr(8)  # pools of the same row

STRIDE = tl.constexpr(FIELDS)
LARGEST_INT = tl.constexpr(0x7FFFFFFF)
LARGEST_LONG = tl.constexpr(0x7FFFFFFFFFFFFFFF)
INDEX_BITS = tl.constexpr(32)
STAGES = tl.constexpr(3)  # loads under way at once, of loops that do little else
EPS = tl.constexpr(1e-8)  # of torch's cosine similarity
PADDING = tl.constexpr(-1)
# Of float32's bits, those that bfloat16 has, and half of the last of them less one bit.
UPPER, HALF = tl.constexpr(-0x10000), tl.constexpr(0x7FFF)


@triton.jit
def ordered(x):
    """float32 -> int32 that sorts alike; -0.0 and 0.0 are equal."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & LARGEST_INT)


@triton.jit(do_not_specialize=["tokens"])
def norms_kernel(
    keys, norms, always, state, finished, batch_stride, head_stride, token_stride, tokens, width,
    HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """L1 norms float32 [B, S] of keys [B, H, S, HEAD]; `state` [B, S] starts as `always`, `finished` [B] at 0.

    width: H * HEAD. Program (block of ROWS tokens, row).
    """
    row = tl.program_id(1)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = token < tokens
    total = tl.zeros((ROWS,), tl.float32)
    base = keys + row.to(tl.int64) * batch_stride + token.to(tl.int64)[:, None] * token_stride
    for start in tl.range(0, width, COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, COLUMNS)
        offset = (column // HEAD).to(tl.int64) * head_stride + column % HEAD
        part = tl.load(base + offset[None, :], mask=inside[:, None] & (column < width)[None, :], other=0.0)
        total += tl.sum(tl.abs(part.to(tl.float32)), 1)
    here = row * tokens + token
    tl.store(norms + here, total, mask=inside)
    tl.store(state + here, tl.load(always + here, mask=inside, other=0), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(finished + row, 0)


@triton.jit
def largest(norms, positions, first, count, before, BLOCK: tl.constexpr):
    """The largest int64 (norm, the lower position first) below `before` of positions[first : first + count]."""
    best = tl.full((), -1, tl.int64)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < count
        position = tl.load(positions + first + k, mask=inside, other=0)
        # Norms are positive: their bits sort as they do. Without the sign bit a NaN is not negative either.
        bits = tl.load(norms + position, mask=inside, other=0.0).to(tl.int32, bitcast=True) & LARGEST_INT
        packed = (bits.to(tl.int64) << INDEX_BITS) | (position ^ LARGEST_INT).to(tl.int64)  # the lower, the larger
        best = tl.maximum(best, tl.max(tl.where(inside & (packed < before), packed, -1), 0))
    return best


@triton.jit(do_not_specialize=["tokens"])
def pivots_kernel(norms, positions, pools, pivots, state, tokens, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """The pivots of each pool, int32 [G, SLOTS], in visiting order; those among the visual tokens stay. Program (g)."""
    pool = tl.program_id(0)
    fields = pools + pool * STRIDE
    row, images = tl.load(fields + ROW), tl.load(fields + IMAGE_PIVOTS)
    own, last = norms + row * tokens, tl.full((), LARGEST_LONG, tl.int64)
    for k in range(images):
        last = largest(own, positions, tl.load(fields + VISUAL), tl.load(fields + COUNT), last, BLOCK)
        position = (last & LARGEST_INT).to(tl.int32) ^ LARGEST_INT
        tl.store(pivots + pool * SLOTS + k, position)
        tl.store(state + row * tokens + position, 1)
    last = tl.full((), LARGEST_LONG, tl.int64)
    for k in range(images, tl.load(fields + PIVOTS)):
        last = largest(own, positions, tl.load(fields + TEXT), tl.load(fields + TEXTS), last, BLOCK)
        tl.store(pivots + pool * SLOTS + k, (last & LARGEST_INT).to(tl.int32) ^ LARGEST_INT)


@triton.jit
def rounded(x, kind: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 -> kind, to the nearest, ties to even."""
    if INTERPRETED and kind == tl.bfloat16:  # Triton's interpreter cuts off
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + HALF + ((bits >> 16) & 1)) & UPPER).to(tl.float32, bitcast=True)
    return x.to(kind)


@triton.jit
def normed(x, scale, weight, inside, INTERPRETED: tl.constexpr):
    """RMSNorm with the roundings of the model's own code: once before the weight and once behind it."""
    shrunk = rounded(x.to(tl.float32) * scale, x.dtype, INTERPRETED)
    x = rounded(shrunk.to(tl.float32) * weight.to(tl.float32), x.dtype, INTERPRETED)
    return tl.where(inside, x, 0.0)


@triton.jit(do_not_specialize=["tokens"])
def scores_kernel(
    hidden, weight, eps, positions, pools, pivots, state, scores, batch_stride, token_stride, tokens, width,
    NORM: tl.constexpr, INTERPRETED: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Cosine similarity times the pivot's norm, as `ordered` int32, of each pivot to each visual token.

    hidden: [B, S, D], normalised by `weight` [D] and `eps` first if NORM. Tokens that are no candidates (the image
    pivots) get the largest value. Program (block of ROWS tokens, g).
    """
    pool = tl.program_id(1)
    fields = pools + pool * STRIDE
    row, count = tl.load(fields + ROW), tl.load(fields + COUNT)
    k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS < count:
        inside = k < count
        token = tl.load(positions + tl.load(fields + VISUAL) + k, mask=inside, other=0)
        slot = tl.arange(0, SLOTS)
        used = slot < tl.load(fields + PIVOTS)
        pivot = tl.load(pivots + pool * SLOTS + slot, mask=used, other=0)
        base = hidden + row.to(tl.int64) * batch_stride
        left = base + token.to(tl.int64)[:, None] * token_stride
        right = base + pivot.to(tl.int64)[None, :] * token_stride
        column = tl.arange(0, COLUMNS)
        left_scale, right_scale = tl.zeros((ROWS, 1), tl.float32), tl.zeros((1, SLOTS), tl.float32)
        if NORM:
            left_squares, right_squares = tl.zeros((ROWS,), tl.float32), tl.zeros((SLOTS,), tl.float32)
            for start in tl.range(0, width, COLUMNS, num_stages=STAGES):
                real = start + column < width
                x = tl.load(left + (start + column)[None, :], mask=inside[:, None] & real[None, :], other=0.0)
                y = tl.load(right + (start + column)[:, None], mask=used[None, :] & real[:, None], other=0.0)
                left_squares += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
                right_squares += tl.sum(y.to(tl.float32) * y.to(tl.float32), 0)
            left_scale = tl.rsqrt(left_squares / width + eps)[:, None]
            right_scale = tl.rsqrt(right_squares / width + eps)[None, :]
        products, squares = tl.zeros((ROWS, SLOTS), tl.float32), tl.zeros((ROWS,), tl.float32)
        for start in range(0, width, COLUMNS):
            real = start + column < width
            x_real, y_real = inside[:, None] & real[None, :], used[None, :] & real[:, None]
            x = tl.load(left + (start + column)[None, :], mask=x_real, other=0.0)
            y = tl.load(right + (start + column)[:, None], mask=y_real, other=0.0)
            if NORM:
                w = tl.load(weight + start + column, mask=real, other=0.0)
                x = normed(x, left_scale, w[None, :], x_real, INTERPRETED)
                y = normed(y, right_scale, w[:, None], y_real, INTERPRETED)
            if INTERPRETED:  # it would multiply the bits of bfloat16
                products = tl.dot(x.to(tl.float32), y.to(tl.float32), products, input_precision="ieee")
            else:
                products = tl.dot(x, y, products, input_precision="ieee")
            squares += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
        value = ordered(products / tl.maximum(tl.sqrt(squares), EPS)[:, None])
        pivoted = tl.load(state + row * tokens + token, mask=inside, other=0) != 0
        value = tl.where(pivoted[:, None], LARGEST_INT, value)
        target = scores + tl.load(fields + SCORES) + slot[None, :] * count + k[:, None]
        tl.store(target, value, mask=inside[:, None] & used[None, :])


@triton.jit(do_not_specialize_on_alignment=["pools", "limits"])
def ranks_kernel(pools, limits, scores, order, SLOTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`order`: for each pivot the indices of its lowest scores, ascending, as many as it can need: `limits` [G, SLOTS].

    A token's rank is the number of tokens before it: all pairs are compared. Program (block of ROWS tokens, pivot, g).
    """
    pool, slot = tl.program_id(2), tl.program_id(1)
    fields = pools + pool * STRIDE
    count = tl.load(fields + COUNT)
    if (slot < tl.load(fields + PIVOTS)) & (tl.program_id(0) * ROWS < count):
        base = tl.load(fields + SCORES) + slot * count
        k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = k < count
        own = (tl.load(scores + base + k, mask=inside, other=0).to(tl.int64) << INDEX_BITS) | k
        rank = tl.zeros((ROWS,), tl.int32)
        for start in range(0, count, BLOCK):
            j = start + tl.arange(0, BLOCK)
            there = j < count
            other = (tl.load(scores + base + j, mask=there, other=0).to(tl.int64) << INDEX_BITS) | j
            other = tl.where(there, other, LARGEST_LONG)
            rank += tl.sum((other[None, :] < own[:, None]).to(tl.int32), 1)
        needed = inside & (rank < tl.load(limits + pool * SLOTS + slot))
        tl.store(order + base + rank, k, mask=needed)


@triton.jit
def write_rows(state, rows, padding, tokens, BLOCK: tl.constexpr):
    """The positions with a state, ascending, int64, behind `padding` empty slots."""
    for start in range(0, padding, BLOCK):
        k = start + tl.arange(0, BLOCK)
        tl.store(rows + k, tl.full((BLOCK,), PADDING, tl.int64), mask=k < padding)
    found = padding
    for start in range(0, tokens, BLOCK):
        k = start + tl.arange(0, BLOCK)
        # .cg: from the cache that all processors share; other programs have written here.
        stays = tl.load(state + k, mask=k < tokens, other=0, cache_modifier=".cg").to(tl.int32)
        tl.store(rows + found + tl.cumsum(stays, 0) - 1, k.to(tl.int64), mask=stays != 0)
        found += tl.sum(stays, 0)


@triton.jit(do_not_specialize=["tokens", "left"])
def rounds_kernel(
    positions, pools, takes, limits, order, state, finished, padding, rows, tokens, left,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each pivot in turn takes its lowest tokens that nobody took; the last pool of a row writes the row down.

    takes, limits: int32 [G, SLOTS], tokens to take, and how far down its order a pivot can have to go; padding: int32
    [B]; rows: int64 [B, left]. Program (g).
    """
    pool = tl.program_id(0)
    fields = pools + pool * STRIDE
    row, first, count = tl.load(fields + ROW), tl.load(fields + VISUAL), tl.load(fields + COUNT)
    own = state + row * tokens
    for slot in range(tl.load(fields + PIVOTS)):
        take, limit = tl.load(takes + pool * SLOTS + slot), tl.load(limits + pool * SLOTS + slot)
        base = order + tl.load(fields + SCORES) + slot * count
        taken, start = 0, 0
        while (taken < take) & (start < limit):
            k = start + tl.arange(0, BLOCK)
            index = tl.load(base + k, mask=k < limit, other=0)
            position = tl.load(positions + first + index, mask=k < limit, other=0)
            free = ((tl.load(own + position, mask=k < limit, other=1) == 0) & (k < limit)).to(tl.int32)
            tl.store(own + position, 1, mask=(free != 0) & (tl.cumsum(free, 0) + taken <= take))
            taken += tl.sum(free, 0)
            start += BLOCK
        tl.debug_barrier()  # the next pivot sees what this one took
    if tl.atomic_add(finished + row, 1, sem="acq_rel") == tl.load(fields + SHARED) - 1:
        write_rows(own, rows + row.to(tl.int64) * left, tl.load(padding + row), tokens, BLOCK)


@triton.jit
def copy_row(source, target, width, BLOCK: tl.constexpr):
    for start in range(0, width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        tl.store(target + k, tl.load(source + k, mask=k < width), mask=k < width)


@triton.jit(do_not_specialize=["left", "place_axis_stride", "place_batch_stride"])
def gather_kernel(
    rows, left, hidden, hidden_out, batch_stride, token_stride, width,
    cos, sin, cos_out, sin_out, axes, angle_axis_stride, angle_batch_stride, angle_token_stride, angles,
    places, places_out, place_axes, place_axis_stride, place_batch_stride, place_token_stride,
    BLOCK: tl.constexpr, ANGLE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Row `rows[b, n]` of everything that a layer is given, to row n: hidden states, rotary angles and positions.

    cos, sin: [axes, B or 1, S, angles]; places: [place_axes, B or 1, S]; a batch stride is 0 where one is for all.
    An empty slot (negative) is given what position 0 has. Outputs are contiguous. Program (n, b).
    """
    slot, row, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    here = row * left + slot
    token = tl.maximum(tl.load(rows + here), 0)
    copy_row(hidden + row * batch_stride + token * token_stride, hidden_out + here * width, width, BLOCK)
    for axis in range(axes):
        source = axis * angle_axis_stride + row * angle_batch_stride + token * angle_token_stride
        target = (axis * batch * left + here) * angles
        copy_row(cos + source, cos_out + target, angles, ANGLE_BLOCK)
        copy_row(sin + source, sin_out + target, angles, ANGLE_BLOCK)
    for axis in range(place_axes):
        source = axis * place_axis_stride + row * place_batch_stride + token * place_token_stride
        tl.store(places_out + axis * batch * left + here, tl.load(places + source))
