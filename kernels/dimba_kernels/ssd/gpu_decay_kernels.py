"""Triton kernels over single positions: what the decays of a chunk come to, and their gradient.

`a` is the logarithm of each position's decay, minus infinity where nothing passes. Sums are in units of log 2, for
exp2 is what the GPU has. A position whose decay is cut, or lies below FLOOR, is a reset: it adds nothing to the sums,
which so keep their digits, and pairs of positions with a reset between them are told apart by counting resets.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
FLOOR: tl.constexpr = tl.constexpr(-40.0)  # e**-40 of anything is nothing beside it, in float32 too
FORWARD: tl.constexpr = tl.constexpr(0)
REVERSE: tl.constexpr = tl.constexpr(1)


@triton.jit
def is_reverse(direction, DIRECTION: tl.constexpr):
    """Does direction number `direction` of the launch run in reverse? DIRECTION = 2: the second of two does."""
    if DIRECTION == 2:
        return direction == 1
    else:
        return DIRECTION == 1


@triton.jit
def running_sum(values, reverse):
    return tl.where(reverse, tl.cumsum(values, axis=1, reverse=True), tl.cumsum(values, axis=1))


@triton.jit
def row_of_all(row, launch, H: tl.constexpr, LOCAL: tl.constexpr):
    """Of (..., h), the row that is number `row` of (..., heads): heads from launch[0] on."""
    return row // LOCAL * H + tl.load(launch) + row % LOCAL


@triton.jit
def chunk_decays(
    a,  # (ways, b, h, l), float32
    dt,  # (b, h, l) or (ways, b, h, l), float32
    launch,  # (3,) int32, the first of them: of the heads that this launch takes
    sums,  # (ways, b, heads, padded l): from the chunk's first position up to and with this one
    enter,  # the same shape: the decay from the state entering the chunk to this position
    leave,  # the same shape: dt times the decay from this position to the chunk's end
    other,  # the same shape: sums - log2 dt, or for the gradients the decay to the chunk's end alone
    counts,  # the same shape, int32: resets up to and with this position
    scales,  # (ways, b, heads, chunks): the decay over the whole chunk
    L: tl.constexpr,
    H: tl.constexpr,
    LOCAL: tl.constexpr,  # heads that this launch takes
    WAYS: tl.constexpr,
    DIRECTION: tl.constexpr,
    SHARED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    RESETS: tl.constexpr,
    Q: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0) // WAYS
    reverse = is_reverse(row // rows, DIRECTION)
    source = row_of_all(row, launch, H, LOCAL)
    chunk = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = tl.arange(0, Q)
    at = chunk[:, None] * Q + inside[None, :]
    step = tl.where(reverse, -1, 1)

    here = tl.load(a + source * L + at, mask=at < L, other=0.0)
    following = (inside + step >= 0) & (inside + step < Q)
    after = tl.load(a + source * L + at + step, mask=following[None, :] & (at + step < L), other=0.0)
    here, cut = _split_resets(here, RESETS)
    after, cut_after = _split_resets(after, RESETS)
    sum_here = running_sum(here, reverse)
    to_here = tl.exp2(sum_here)
    # summed from the end on its own: a difference with the total would lose digits
    to_end = tl.exp2(running_sum(after, reverse == 0))
    total = tl.exp2(tl.sum(here, axis=1))
    stored = chunk[:, None] < CHUNKS
    base = row * (CHUNKS * Q)
    if RESETS:
        count = running_sum(cut, reverse)
        to_here = tl.where(count == 0, to_here, 0.0)
        to_end = tl.where(running_sum(cut_after, reverse == 0) == 0, to_end, 0.0)
        total = tl.where(tl.sum(cut, axis=1) == 0, total, 0.0)
        tl.store(counts + base + at, count, mask=stored)
    dt_row = source % (rows // LOCAL * H) if SHARED else source
    dt_here = tl.load(dt + dt_row * L + at, mask=at < L, other=0.0)
    tl.store(sums + base + at, sum_here, mask=stored)
    tl.store(enter + base + at, to_here, mask=stored)
    tl.store(leave + base + at, to_end * dt_here, mask=stored)
    tl.store(other + base + at, to_end if GRADIENTS else sum_here - tl.log2(dt_here), mask=stored)
    tl.store(scales + row * CHUNKS + chunk, total, mask=chunk < CHUNKS)


@triton.jit
def _split_resets(a, RESETS: tl.constexpr):
    """The sums' terms, and where (1) the state does not pass."""
    cut = (a < FLOOR).to(tl.int32)
    if RESETS:
        a = tl.where(cut != 0, 0.0, a)
    else:
        a = tl.maximum(a, FLOOR)
    return a * LOG2E, cut


@triton.jit
def decay_gradients(
    a,  # (ways, b, h, l), float32
    launch,  # (3,) int32, the first of them: of the heads that this launch takes
    crossing,  # (ways, b, heads, padded l): of pairs of positions, those that end here less those that begin here; if
    # EXACT those that begin before here and end here or behind
    entering,  # the same shape: the terms of what comes from before the chunk to here
    leaving,  # the same shape: the terms of what goes from here to the chunk's end
    through,  # (ways, b, heads, chunks): the term of what goes through the chunk
    gradient,  # (ways, b, heads, l): of a
    L: tl.constexpr,
    H: tl.constexpr,
    LOCAL: tl.constexpr,  # heads that this launch takes
    WAYS: tl.constexpr,
    DIRECTION: tl.constexpr,
    EXACT: tl.constexpr,
    Q: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A decay at k scales every term that begins before k and ends at k or behind it: all three sorts of them."""
    row = tl.program_id(0).to(tl.int64)
    reverse = is_reverse(row // (tl.num_programs(0) // WAYS), DIRECTION)
    chunk = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = tl.arange(0, Q)
    at = chunk[:, None] * Q + inside[None, :]
    stored = chunk[:, None] < CHUNKS
    base = row * (CHUNKS * Q)
    step = tl.where(reverse, 1, -1)
    pairs = tl.load(crossing + base + at, mask=stored, other=0.0)
    within = tl.load(entering + base + at, mask=stored, other=0.0)
    if not EXACT:
        within += pairs
    begun = (inside + step >= 0) & (inside + step < Q)
    before = tl.load(leaving + base + at + step, mask=begun[None, :] & stored, other=0.0)
    whole = tl.load(through + row * CHUNKS + chunk, mask=chunk < CHUNKS, other=0.0)
    total = running_sum(within, reverse == 0) + running_sum(before, reverse) + whole[:, None]
    if EXACT:
        total += pairs
    here = tl.load(a + row_of_all(row, launch, H, LOCAL) * L + at, mask=at < L, other=0.0)
    tl.store(gradient + row * L + at, tl.where(here < FLOOR, 0.0, total), mask=at < L)
