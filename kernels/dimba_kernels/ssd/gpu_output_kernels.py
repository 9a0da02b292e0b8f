"""Triton kernel of y: inside each chunk matmuls over pairs of positions, from outside it the entering states."""

from __future__ import annotations

import triton
import triton.language as tl

from dimba_kernels.ssd.gpu_decay_kernels import is_reverse
from dimba_kernels.ssd.gpu_state_kernels import kept, load_rows, product


@triton.jit
def chunk_outputs(
    x,  # ([ways,] b, l, h, p)
    B,  # ([ways,] b, l, g, n)
    C,  # the same
    D,  # ([ways,] h) float32
    mask,  # (b, l) int8
    sums,  # (ways, b, h, padded l) float32
    from_sums,  # the same: sums - log2 dt
    enter,  # the same
    counts,  # the same, int32
    states,  # (1, ways, b, chunks, h, n, p)
    y,  # as x; with SHARED the ways are summed
    BATCH: tl.constexpr,
    L: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    DIRECTION: tl.constexpr,
    SHARED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_D: tl.constexpr,
    RESETS: tl.constexpr,
    Q: tl.constexpr,
    CHUNKS: tl.constexpr,
    HEADS: tl.constexpr,
    BN: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one chunk, and HEADS heads of one group, which share C B^T. BOTH: SHARED and DIRECTION = 2."""
    BOTH: tl.constexpr = SHARED and DIRECTION == 2
    BLOCKS: tl.constexpr = H // G // HEADS
    group = tl.program_id(0) // BLOCKS
    c = tl.program_id(1).to(tl.int64)
    line = tl.program_id(2).to(tl.int64)  # of (ways, b), or of b
    batch = line % BATCH
    back: tl.constexpr = BATCH * H * CHUNKS * Q  # from a vector of the forward direction to the reverse one's
    back_state: tl.constexpr = BATCH * CHUNKS * H * N * P

    inside = tl.arange(0, Q)
    columns = tl.arange(0, BP)
    n = tl.arange(0, BN)
    KEEP: tl.constexpr = HAS_MASK or L % Q != 0
    keep = kept(mask, batch, (c * Q + inside).to(tl.int32), L, HAS_MASK)
    rows = (line * L + c * Q) * (G * N) + group * N
    C_c = load_rows(C + rows, inside, n, G * N, keep, KEEP, N, BN)
    B_c = load_rows(B + rows, inside, n, G * N, keep, KEEP, N, BN)
    scores = product(C_c, tl.trans(B_c), None, PRECISION)
    lower = inside[:, None] >= inside[None, :]
    if BOTH:  # the diagonal belongs to both directions
        scores = tl.where(inside[:, None] == inside[None, :], 2 * scores, scores)
    else:
        reverse = is_reverse(line // BATCH, DIRECTION)
        scores = tl.where(tl.where(reverse, inside[:, None] <= inside[None, :], lower), scores, 0.0)

    x_at = x + (line * L + c * Q) * (H * P)
    y_at = y + (line * L + c * Q) * (H * P)
    for i in tl.range(HEADS):
        head = tl.program_id(0) * HEADS + i
        x_c = load_rows(x_at + head * P, inside, columns, H * P, keep, KEEP, P, BP)
        at = (line * H + head) * (CHUNKS * Q) + c * Q + inside
        state_at = states + ((line * CHUNKS + c) * H + head) * (N * P)
        h_c = load_rows(state_at, n, columns, P, n < N, N < BN, P, BP)
        entering = tl.load(enter + at)
        # log2 of decay and dt: only where scores are zero can it be large
        to, start = tl.load(sums + at), tl.load(from_sums + at)
        exponent = to[:, None] - start[None, :]
        acc = product(C_c, h_c, None, PRECISION) * entering[:, None]
        if BOTH:
            to_r, start_r = tl.load(sums + back + at), tl.load(from_sums + back + at)
            exponent = tl.where(lower, exponent, to_r[:, None] - start_r[None, :])
            h_r = load_rows(state_at + back_state, n, columns, P, n < N, N < BN, P, BP)
            acc += product(C_c, h_r, None, PRECISION) * tl.load(enter + back + at)[:, None]
        weights = scores * tl.exp2(tl.minimum(exponent, 100.0))
        if RESETS:
            run = tl.load(counts + at)
            same = run[:, None] == run[None, :]
            if BOTH:
                run_r = tl.load(counts + back + at)
                same = tl.where(lower, same, run_r[:, None] == run_r[None, :])
            weights = tl.where(same, weights, 0.0)
        acc = product(weights.to(x_c.dtype), x_c, acc, PRECISION)
        if HAS_D:
            acc += tl.load(D + line // BATCH * H + head) * x_c.to(tl.float32)
        out = y_at + head * P + inside[:, None] * (H * P) + columns[None, :]
        inside_y = (c * Q + inside < L)[:, None] & (columns < P)[None, :]
        if L % Q == 0 and P == BP:
            tl.store(out, acc.to(x_c.dtype))
        else:
            tl.store(out, acc.to(x_c.dtype), mask=inside_y)
