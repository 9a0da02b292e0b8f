"""Triton kernel of the states between chunks: a walk over the chunks of a sequence with the state in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from dimba_kernels.ssd.gpu_decay_kernels import is_reverse


@triton.jit
def load_rows(base, rows, columns, stride, keep, KEEP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, columns) of a matrix with `stride` elements a row; zeros where `keep` is False or a column is no more.

    Nothing is masked where KEEP is False and the block is as wide as the matrix.
    """
    at = base + (rows[:, None] * stride + columns[None, :])
    if KEEP and WIDTH < BLOCK:
        return tl.load(at, mask=keep[:, None] & (columns < WIDTH)[None, :], other=0.0)
    elif KEEP:
        return tl.load(at, mask=keep[:, None], other=0.0)
    elif WIDTH < BLOCK:
        return tl.load(at, mask=(columns < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def product(left, right, sum, PRECISION: tl.constexpr):
    """left @ right + sum, in float32. PRECISION: of Triton; "ieee" also of bfloat16, which its interpreter cannot
    multiply: it takes the bits for integers."""
    if PRECISION == "ieee":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), sum, input_precision=PRECISION)
    else:
        return tl.dot(left, right, sum, input_precision=PRECISION)


@triton.jit
def kept(mask, batch, positions, L: tl.constexpr, HAS_MASK: tl.constexpr):
    """Which of the positions exist and are not masked. mask: (b, l) int8."""
    inside = positions < L
    if HAS_MASK:
        return inside & (tl.load(mask + batch * L + positions, mask=inside, other=0) != 0)
    else:
        return inside


@triton.jit
def chunk_states(
    x,  # ([ways,] b, l, h, p)
    dy,  # the same
    B,  # ([ways,] b, l, g, n)
    C,  # the same
    mask,  # (b, l) int8
    leave,  # (ways, b, heads, padded l) float32
    enter,  # the same
    scales,  # (ways, b, heads, chunks) float32
    start,  # (ways, b, h, p, n) float32: h0
    end,  # the same: the cotangent of h_last
    launch,  # (3,) int32: the first of the heads that this launch takes; whether there is an `end`, else it is zero;
    # number, in (walks, ways, b), from which on last states are kept
    states,  # (walks, ways, b, chunks, heads, n, p), in x's dtype: the state with which the walk enters each chunk
    last,  # (ways, b, heads, p, n) float32, if any are kept
    BATCH: tl.constexpr,
    L: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    WAYS: tl.constexpr,
    DIRECTION: tl.constexpr,
    SHARED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_START: tl.constexpr,
    WALKS: tl.constexpr,
    Q: tl.constexpr,
    CHUNKS: tl.constexpr,
    BN: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Walk 0 is the scan itself, from x and B; walk 1, where WALKS is 2, carries the state's gradient the other way,
    from dy and C. Blocks of the state (n, p) do not depend on each other."""
    block = tl.program_id(0)
    head, has_end = tl.load(launch) + tl.program_id(1), tl.load(launch + 1)
    # the walks over one sequence run side by side: what one has read, another may find in the L2 cache
    batch = (tl.program_id(2) // (WAYS * WALKS)).to(tl.int64)
    way = tl.program_id(2) // WALKS % WAYS
    back = tl.program_id(2) % WALKS == 1
    walk = (tl.program_id(2) % WALKS * WAYS + way) * BATCH + batch  # of (walks, ways, b)
    inputs = batch if SHARED else walk % (BATCH * WAYS)
    row = (walk % (BATCH * WAYS)) * tl.num_programs(1) + tl.program_id(1)  # of the decays
    reverse = is_reverse(way, DIRECTION)

    columns = block // tl.cdiv(N, BN) * BP + tl.arange(0, BP)
    n = block % tl.cdiv(N, BN) * BN + tl.arange(0, BN)
    in_state = (n < N)[:, None] & (columns < P)[None, :]
    x_at = (x if WALKS == 1 else (dy if back else x)) + inputs * (L * H * P) + head * P
    B_at = (B if WALKS == 1 else (C if back else B)) + inputs * (L * G * N) + head // (H // G) * N
    weights = (leave if WALKS == 1 else (enter if back else leave)) + row * (CHUNKS * Q)
    if WALKS == 2:
        reverse = reverse != back

    square = (walk % (BATCH * WAYS) * H + head) * (P * N) + columns[None, :] * N + n[:, None]
    if WALKS == 2:
        if back:  # has_end is no constant: the compiler's choice of registers for the loop hangs on this load
            state = tl.load(end + square, mask=in_state & (has_end != 0), other=0.0)
        elif HAS_START:
            state = tl.load(start + square, mask=in_state, other=0.0)
        else:
            state = tl.zeros((BN, BP), tl.float32)
    elif HAS_START:
        state = tl.load(start + square, mask=in_state, other=0.0)
    else:
        state = tl.zeros((BN, BP), tl.float32)

    KEEP: tl.constexpr = HAS_MASK or L % Q != 0
    FULL: tl.constexpr = N % BN == 0 and P % BP == 0
    inside = tl.arange(0, Q)
    for i in tl.range(CHUNKS):
        c = tl.where(reverse, CHUNKS - 1 - i, i).to(tl.int64)
        saved = (
            states
            + ((walk * CHUNKS + c) * tl.num_programs(1) + tl.program_id(1)) * (N * P)
            + n[:, None] * P
            + columns[None, :]
        )
        if FULL:
            tl.store(saved, state.to(states.dtype.element_ty))
        else:
            tl.store(saved, state.to(states.dtype.element_ty), mask=in_state)
        keep = kept(mask, batch, (c * Q + inside).to(tl.int32), L, HAS_MASK)
        x_c = load_rows(x_at + c * (Q * H * P), inside, columns, H * P, keep, KEEP, P, (P + BP - 1) // BP * BP)
        B_c = load_rows(B_at + c * (Q * G * N), inside, n, G * N, keep, KEEP, N, (N + BN - 1) // BN * BN)
        weight = tl.load(weights + c * Q + inside)
        scale = tl.load(scales + row * CHUNKS + c)
        scaled = (x_c.to(tl.float32) * weight[:, None]).to(x_c.dtype)
        state = product(tl.trans(B_c), scaled, state * scale, PRECISION)
    at_last = last + row * (P * N) + columns[None, :] * N + n[:, None]
    tl.store(at_last, state, mask=in_state & (walk >= tl.load(launch + 2)))
