"""Triton kernel of the gradients: one program takes one chunk of positions through several heads.

Three programs share a chunk's work, for one alone would need twice the registers there are: one computes dx, one what
the states give dB, one dC and the rest of dB. They follow one another, and find what they all read in the L2 cache.
Matrices over pairs of positions are made where they are used, as left operands that never leave the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dimba_kernels.ssd.gpu_decay_kernels import is_reverse
from dimba_kernels.ssd.gpu_state_kernels import kept, load_rows, product


@triton.jit
def chunk_gradients(
    x,  # ([ways,] b, l, h, p)
    dy,  # the same
    B,  # ([ways,] b, l, g, n)
    C,  # the same
    D,  # ([ways,] h) float32
    mask,  # (b, l) int8
    dt,  # ([ways,] b, h, l) float32
    sums,  # (ways, b, heads, padded l) float32
    enter,  # the same
    leave,  # the same: without dt
    counts,  # the same, int32
    scales,  # (ways, b, heads, chunks) float32
    launch,  # (3,) int32, the first of them: of the heads that this launch takes
    states,  # (2, ways, b, chunks, heads, n, p): entering states, and the gradients of the states at the other end
    dx_before,  # the outputs' memory, with what another launch has written to it
    dB_before,
    dC_before,
    dx,  # as x
    dB,  # ([ways,] b, 2, SHARES, l, g, n): to be summed
    dC,  # ([ways,] b, SHARES, l, g, n): to be summed
    ddt,  # ([ways,] b, heads, padded l) float32: what reaches dt beside the decay
    dD,  # the same: x dy
    crossing,  # (ways, b, heads, padded l) float32: see decay_gradients
    entering,  # the same
    leaving,  # the same
    through,  # (ways, b, heads, chunks) float32
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
    LOCAL: tl.constexpr,  # heads that this launch takes
    SHARES: tl.constexpr,  # of a group's heads in dB and dC; of one group, a later launch adds to those of the first
    BN: tl.constexpr,
    BP: tl.constexpr,
    X_STAGES: tl.constexpr,
    B_STAGES: tl.constexpr,
    C_STAGES: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    BOTH: tl.constexpr = SHARED and DIRECTION == 2
    WAYS: tl.constexpr = 2 if DIRECTION == 2 else 1
    BLOCKS: tl.constexpr = H // G // HEADS
    KEEP: tl.constexpr = HAS_MASK or L % Q != 0
    TO_GRADIENTS: tl.constexpr = WAYS * BATCH * CHUNKS * LOCAL * N * P
    TO_REVERSE: tl.constexpr = BATCH * LOCAL * CHUNKS * Q
    STATES_TO_REVERSE: tl.constexpr = BATCH * CHUNKS * LOCAL * N * P
    TWICE: tl.constexpr = 2 if BOTH else 1
    first_head = tl.load(launch)
    local_block = tl.program_id(0) // 3  # heads are counted from the first of the launch
    head_block = first_head // HEADS + local_block
    group = head_block // BLOCKS
    share = (local_block if G == 1 else head_block) % SHARES
    c = tl.program_id(1).to(tl.int64)
    line = tl.program_id(2).to(tl.int64)  # of ([ways,] b)
    inside = tl.arange(0, Q)
    columns = tl.arange(0, BP)
    n = tl.arange(0, BN)
    keep = kept(mask, line % BATCH, (c * Q + inside).to(tl.int32), L, HAS_MASK)
    rows = (line * L + c * Q) * (G * N) + group * N
    reverse = is_reverse(line // BATCH, DIRECTION)
    earlier = inside[:, None] < inside[None, :]  # is the row before the column?
    diagonal = inside[:, None] == inside[None, :]
    x_rows = (line * L + c * Q) * (H * P) + first_head * P
    steps = dt + (line * (H - LOCAL) + first_head) * L + c * Q + inside
    here = c * Q + inside < L
    in_block = here[:, None] & (n < N)[None, :]
    block = c * Q * (G * N) + group * N + inside[:, None] * (G * N) + n[None, :]
    partial = L * G * N
    goes_on = in_block & (G == 1) & (first_head > 0)

    if tl.program_id(0) % 3 == 0:  # pairs as (j, i): dx
        B_c = load_rows(B + rows, inside, n, G * N, keep, KEEP, N, BN)
        C_c = load_rows(C + rows, inside, n, G * N, keep, KEEP, N, BN)
        scores = product(B_c, tl.trans(C_c), None, PRECISION)
        # the diagonal does not decay, and is kept apart from what does; both ways, it belongs to both
        own = tl.sum(tl.where(diagonal, scores, 0.0), axis=1) * TWICE
        scores = tl.where(diagonal if BOTH else (earlier == reverse) | diagonal, 0.0, scores)
        for k in tl.range(HEADS, num_stages=X_STAGES):
            head = local_block * HEADS + k
            row = line * LOCAL + head
            at = row * (CHUNKS * Q) + c * Q + inside
            state_at = states + TO_GRADIENTS + ((line * CHUNKS + c) * LOCAL + head) * (N * P)
            x_c = load_rows(x + x_rows + head * P, inside, columns, H * P, keep, KEEP, P, BP)
            dy_c = load_rows(dy + x_rows + head * P, inside, columns, H * P, keep, KEEP, P, BP)
            dt_at = tl.load(steps + row * L, mask=here, other=0.0)
            weights = scores * _decays(sums, counts, at, -1.0, earlier, TO_REVERSE, BOTH, RESETS)
            products = product(x_c, tl.trans(dy_c), None, PRECISION)
            products_own = tl.sum(tl.where(diagonal, products, 0.0), axis=1)
            terms = products * weights
            weights *= dt_at[:, None]
            weights_own = own * dt_at
            if HAS_D:  # on the diagonal, where it costs no registers for dy
                tl.store(dD + at, products_own)
                weights_own += tl.load(D + line // BATCH * H + first_head + head)
            weights = tl.where(diagonal, weights_own[:, None], weights)
            dx_c = product(weights.to(x_c.dtype), dy_c, None, PRECISION)
            begin = tl.sum(terms, axis=1)
            ddt_c = begin + own * products_own
            terms *= dt_at[:, None]
            if EXACT:  # of the pairs that cross a position, each once: nothing cancels
                for way in tl.static_range(TWICE):
                    backward = way == 1 if BOTH else reverse
                    begun = tl.where(diagonal, 0.0, (earlier == backward).to(tl.float32))
                    across = product(begun, terms, None, PRECISION)
                    over = tl.where((earlier != backward) | diagonal, across, 0.0)
                    tl.store(crossing + way * TO_REVERSE + at, tl.sum(over, axis=1))
            else:  # of pairs that end here, less those that begin here: their running sum is the same
                end = tl.sum(terms, axis=0)
                if BOTH:
                    forward = tl.where(earlier, terms, 0.0)
                    difference = tl.sum(forward, axis=0) - tl.sum(forward, axis=1)
                    tl.store(crossing + at, difference)
                    tl.store(crossing + TO_REVERSE + at, end - begin * dt_at - difference)
                else:
                    tl.store(crossing + at, end - begin * dt_at)
            for way in tl.range(TWICE):  # unrolled, it would spill
                dh_c = load_rows(state_at + way * STATES_TO_REVERSE, n, columns, P, n < N, N < BN, P, BP)
                dx_out = product(B_c, dh_c, None, PRECISION) * tl.load(leave + way * TO_REVERSE + at)[:, None]
                sum_out = tl.sum(x_c.to(tl.float32) * dx_out, axis=1)
                tl.store(leaving + way * TO_REVERSE + at, sum_out * dt_at)
                ddt_c += sum_out
                dx_c += dx_out * dt_at[:, None]
            tl.store(ddt + at, ddt_c)
            out = dx + x_rows + head * P + inside[:, None] * (H * P) + columns[None, :]
            if L % Q == 0 and P == BP:
                tl.store(out, dx_c.to(x_c.dtype))
            else:
                tl.store(out, dx_c.to(x_c.dtype), mask=here[:, None] & (columns < P)[None, :])
    elif tl.program_id(0) % 3 == 1:  # what leaves the chunk and what goes through it: dB
        total = tl.zeros((Q, BN), tl.float32)
        for k in tl.range(HEADS * TWICE, num_stages=B_STAGES):
            head = local_block * HEADS + k // TWICE
            way = k % TWICE
            row = line * LOCAL + head
            at = row * (CHUNKS * Q) + c * Q + inside
            state_at = states + ((line * CHUNKS + c) * LOCAL + head) * (N * P) + way * STATES_TO_REVERSE
            x_c = load_rows(x + x_rows + head * P, inside, columns, H * P, keep, KEEP, P, BP)
            h_c = load_rows(state_at, n, columns, P, n < N, N < BN, P, BP)
            dh_c = load_rows(state_at + TO_GRADIENTS, n, columns, P, n < N, N < BN, P, BP)
            to_end = tl.load(leave + way * TO_REVERSE + at) * tl.load(steps + row * L, mask=here, other=0.0)
            x_out = (x_c.to(tl.float32) * to_end[:, None]).to(x_c.dtype)
            total = product(x_out, tl.trans(dh_c), total, PRECISION)
            scale_at = way * (BATCH * LOCAL * CHUNKS) + row * CHUNKS + c
            passing = tl.load(scales + scale_at) * tl.sum(h_c.to(tl.float32) * dh_c.to(tl.float32))
            tl.store(through + scale_at, passing)
        _store_share(dB, dB_before, (line * 2 * SHARES + share) * partial + block, total, in_block, goes_on)
    else:  # pairs as (i, j): dC, and of dB what stays in the chunk
        C_c = load_rows(C + rows, inside, n, G * N, keep, KEEP, N, BN)
        dscores = tl.zeros((Q, Q), tl.float32)
        total = tl.zeros((Q, BN), tl.float32)
        for k in tl.range(HEADS, num_stages=C_STAGES):
            head = local_block * HEADS + k
            row = line * LOCAL + head
            at = row * (CHUNKS * Q) + c * Q + inside
            state_at = states + ((line * CHUNKS + c) * LOCAL + head) * (N * P)
            x_c = load_rows(x + x_rows + head * P, inside, columns, H * P, keep, KEEP, P, BP)
            dy_c = load_rows(dy + x_rows + head * P, inside, columns, H * P, keep, KEEP, P, BP)
            dt_at = tl.load(steps + row * L, mask=here, other=0.0)
            for way in tl.static_range(TWICE):
                h_c = load_rows(state_at + way * STATES_TO_REVERSE, n, columns, P, n < N, N < BN, P, BP)
                to_here = tl.load(enter + way * TO_REVERSE + at)
                dy_in = dy_c.to(tl.float32) * to_here[:, None]
                total = product(dy_in.to(x_c.dtype), tl.trans(h_c), total, PRECISION)
                y_in = product(C_c, h_c, None, PRECISION)
                tl.store(entering + way * TO_REVERSE + at, tl.sum(dy_in * y_in, axis=1))
            decay = _decays(sums, counts, at, 1.0, earlier == 0, TO_REVERSE, BOTH, RESETS)
            dscores += product(dy_c, tl.trans(x_c), None, PRECISION) * (decay * dt_at[None, :])
        if BOTH:  # the diagonal belongs to both directions
            dscores = tl.where(diagonal, 2 * dscores, dscores)
        else:
            dscores = tl.where((earlier == reverse) | diagonal, dscores, 0.0)
        dscores = dscores.to(x.dtype.element_ty)
        B_c = load_rows(B + rows, inside, n, G * N, keep, KEEP, N, BN)
        dC_c = product(dscores, B_c, total, PRECISION)
        _store_share(dC, dC_before, (line * SHARES + share) * partial + block, dC_c, in_block, goes_on)
        dB_c = product(tl.trans(dscores), C_c, None, PRECISION)
        _store_share(dB, dB_before, ((line * 2 + 1) * SHARES + share) * partial + block, dB_c, in_block, goes_on)


@triton.jit
def _store_share(out, before, at, share, exists, goes_on):
    """Added last, to what an earlier launch has stored there: begun with, that would cost registers in the loops."""
    share += tl.load(before + at, mask=goes_on, other=0.0).to(tl.float32)
    tl.store(out + at, share.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _decays(sums, counts, at, sign, forward, back, BOTH: tl.constexpr, RESETS: tl.constexpr):
    """The decay between row and column; no more than 1 where nothing goes between them. sign: 1 if rows are targets,
    -1 if columns are. forward: does the pair belong to the forward direction?"""
    here = tl.load(sums + at) * sign
    exponents = here[:, None] - here[None, :]
    if BOTH:
        here = tl.load(sums + back + at) * sign
        exponents = tl.where(forward, exponents, here[:, None] - here[None, :])
    decay = tl.exp2(tl.minimum(exponents, 0.0))
    if RESETS:
        count = tl.load(counts + at)
        same = count[:, None] == count[None, :]
        if BOTH:
            count = tl.load(counts + back + at)
            same = tl.where(forward, same, count[:, None] == count[None, :])
        decay = tl.where(same, decay, 0.0)
    return decay
