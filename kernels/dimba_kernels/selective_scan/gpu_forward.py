"""GPU kernels of `selective_scan`: the forward scan, and the states that enter segments of the sequence.

Inputs (b, l, d) are loaded one tile ahead, into registers. B and C come as one float32 array (b, steps, 2, states): in
the order of the scan, zeros where the mask is False and behind the last step, so that they need no masks here.
"""

# pyright: reportGeneralTypeIssues=false
# (to a type checker a function under @triton.jit never returns)

import triton
import triton.language as tl

from dimba_kernels.selective_scan.gpu_rows import (
    FORGET,
    LOG2E,
    apart,
    flat,
    gathered,
    narrow_offsets,
    narrow_tile,
    off_tile,
    over_states_spread,
    run_rows,
    run_rows_back,
    settled,
    spread,
    spread_channels,
    state_offsets_on_tile,
    tile,
)
from dimba_kernels.selective_scan.gpu_steps import sigmoid, step_size


@triton.jit
def positions(first, L: tl.constexpr, T: tl.constexpr, REVERSE: tl.constexpr):
    """Where scan steps first ... first + T - 1 stand, and which of them exist."""
    step = first + tl.arange(0, T)
    return (L - 1 - step if REVERSE else step), step < L


@triton.jit
def flagged(flags_p, base, at, inside, FLAGS: tl.constexpr):
    """[T]: which positions count, and what to add to the exponent of their decays."""
    if FLAGS:
        flags = tl.load(flags_p + base + at, mask=inside, other=0)
        return (flags & 1) != 0, tl.where((flags & 2) != 0, FORGET, 0.0)
    else:
        return inside, tl.where(inside, 0.0, 0.0)


@triton.jit
def state_offsets(block, D: tl.constexpr, N: tl.constexpr, DB: tl.constexpr, NB: tl.constexpr):
    """Of a channel block's states in a (d, n) array, and which of them exist: [channels, states]."""
    d = (block * DB + tl.arange(0, DB))[:, None]
    n = tl.arange(0, NB)[None]
    return d * N + n, (d < D) & (n < N)


@triton.jit
def channel_offsets(block, W: tl.constexpr, C: tl.constexpr):
    """A block's channels: [W, channels a warp]."""
    return block * (W * C) + tl.arange(0, W)[:, None] * C + tl.arange(0, C)[None]


@triton.jit
def load_wide(
    p, row, first, d, L: tl.constexpr, D: tl.constexpr, T: tl.constexpr, REVERSE: tl.constexpr, EVEN: tl.constexpr
):
    """[T, W, channels a warp] of a (b, l, d) array, in its dtype. EVEN: all of them exist."""
    at, inside = positions(first, L, T, REVERSE)
    at = p + row * D + (at[:, None, None] * D + d[None])
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside[:, None, None] & (d < D)[None], other=0)


@triton.jit
def store_wide(p, row, at, inside, d, x, D: tl.constexpr, EVEN: tl.constexpr):
    """x [V, W, T, channels a warp / V] to a (b, l, d) array, at `positions`."""
    x = gathered(x).to(p.dtype.element_ty)
    to = p + row * D + (at[:, None, None] * D + d[None])
    if EVEN:
        tl.store(to, x)
    else:
        tl.store(to, x, mask=inside[:, None, None] & (d < D)[None])


@triton.jit
def load_channels(p, d, D: tl.constexpr, T: tl.constexpr, V: tl.constexpr, PRESENT: tl.constexpr):
    """Of a (d,) array, for every row: [V, W, T, channels a warp / V]; zeros if not PRESENT."""
    if PRESENT:
        x = tl.load(p + d, mask=d < D, other=0).to(tl.float32)
    else:
        x = tl.zeros(d.shape, tl.float32)
    return spread(tl.broadcast_to(x[None], (T, d.shape[0], d.shape[1])), V)


@triton.jit
def selective_scan_forward(
    u_p, dt_p, A_p, BC_p, D_p, z_p, bias_p, flags_p, start_p, y_p, last_p, saved_p,
    L: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SEGMENT: tl.constexpr, SAVE: tl.constexpr,
    T: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr,
    V: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, FLAGS: tl.constexpr,
    HAS_START: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """y of a block of channels over one segment: programs are (channel block, batch, segment).

    start (b, segments, d, n) float32 holds the states that enter the segments. saved (b, L / SAVE, d, n) takes the
    state before every SAVE steps; SAVE = 0 saves none. last (b, d, n) is written by the last segment's program.
    """
    tl.static_assert(SEGMENT % T == 0 and SAVE % T == 0)
    DB: tl.constexpr = W * DL * DT
    ROW: tl.constexpr = 2 * NL * NT
    SEGMENTS: tl.constexpr = (L + SEGMENT - 1) // SEGMENT
    block, b, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = b.to(tl.int64) * L
    d = channel_offsets(block, W, DT * DL)
    of_state, exists = state_offsets(block, D, N, DB, NL * NT)
    A = tile(tl.load(A_p + of_state, mask=exists, other=0).to(tl.float32) * LOG2E, NT, DT, W, NL, DL)
    if HAS_START:
        before = start_p + (b * SEGMENTS + s).to(tl.int64) * (D * N) + of_state
        h = tile(tl.load(before, mask=exists, other=0), NT, DT, W, NL, DL)
    else:
        h = apart(tl.zeros((1, 1, NT, DT, W, DL, NL), tl.float32))
    bias = load_channels(bias_p, d, D, T, V, HAS_BIAS)
    skip = load_channels(D_p, d, D, T, V, HAS_D)

    first = s * SEGMENT
    BC_p += (b * SEGMENTS + s).to(tl.int64) * (SEGMENT * ROW) + narrow_offsets(ROW, T, NT, DT, W, NL, DL)
    next_u = load_wide(u_p, row, first, d, L, D, T, REVERSE, EVEN)
    next_raw = load_wide(dt_p, row, first, d, L, D, T, REVERSE, EVEN)
    if HAS_Z:
        next_z = load_wide(z_p, row, first, d, L, D, T, REVERSE, EVEN)
    for i in tl.range(0, SEGMENT // T, num_stages=1):
        B, C = narrow_tile(BC_p), narrow_tile(BC_p + NL * NT)
        BC_p += T * ROW
        u, raw = spread(next_u.to(tl.float32), V), spread(next_raw.to(tl.float32), V)
        if HAS_Z:
            z = spread(next_z.to(tl.float32), V)
        ahead = first + tl.where(i + 1 < SEGMENT // T, T, 0)  # the last tile loads itself again
        next_u = load_wide(u_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        next_raw = load_wide(dt_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        if HAS_Z:
            next_z = load_wide(z_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        at, inside = positions(first, L, T, REVERSE)
        valid, forget = flagged(flags_p, row, at, inside, FLAGS)
        counts = valid[None, None, :, None]
        if FLAGS:
            u = tl.where(counts, u, 0.0)
        dt, _ = step_size(raw, bias, True if EVEN and not FLAGS else counts, SOFTPLUS, EXACT, FAST)
        if SAVE > 0:
            if (i % (SAVE // T) == 0) & (first < L):
                place = (b * ((L + SAVE - 1) // SAVE) + first // SAVE).to(tl.int64)
                to, stored = state_offsets_on_tile(block, D, N, NT, DT, W, NL, DL)
                to = saved_p + place * (D * N) + to
                if EVEN and N == NL * NT:
                    tl.store(to, off_tile(h).to(saved_p.dtype.element_ty))
                else:
                    tl.store(to, off_tile(h).to(saved_p.dtype.element_ty), mask=stored)
        exponent = spread_channels(dt, T, DT, W, DL) * A
        if FLAGS:
            exponent += forget[None, :, None, None, None, None, None]
        added = spread_channels(dt * u, T, DT, W, DL) * B
        _, after, h = run_rows(apart(tl.exp2(exponent)), added, settled(h), T)
        y = over_states_spread(after * C, T, DT, W, DL, V)
        if HAS_D:
            y += skip * u
        if HAS_Z:
            y *= z * sigmoid(z, FAST)
        if FLAGS:
            y = tl.where(counts, y, 0.0)
        store_wide(y_p, row, at, inside, d, y, D, EVEN)
        first = ahead
    if s == SEGMENTS - 1:
        tl.store(last_p + b.to(tl.int64) * (D * N) + of_state, flat(h, NT, DT, W, NL, DL), mask=exists)


@triton.jit
def selective_scan_segments(
    v_p, dt_p, A_p, BC_p, z_p, bias_p, flags_p, state_p, span_p,
    L: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SEGMENT: tl.constexpr,
    T: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr,
    V: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, FLAGS: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr, FAST: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """What each segment adds to the state: programs are (channel block, batch, segment that another one follows).

    Forward (v = u, with B): the state after the segment if it began at zero. Adjoint (v = the cotangent of y, with C):
    the gradient of the state before the segment, were that of the state after it zero. To state (b, segments, d, n).
    span (b, segments, d) takes the sum of the steps: the segment's decay is exp(A span).
    """
    DB: tl.constexpr = W * DL * DT
    ROW: tl.constexpr = 2 * NL * NT
    SEGMENTS: tl.constexpr = (L + SEGMENT - 1) // SEGMENT
    block, b, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if ADJOINT:  # which needs nothing of the first segment, as the scan needs nothing of the last
        s += 1
    row = b.to(tl.int64) * L
    d = channel_offsets(block, W, DT * DL)
    of_state, exists = state_offsets(block, D, N, DB, NL * NT)
    A = tile(tl.load(A_p + of_state, mask=exists, other=0).to(tl.float32) * LOG2E, NT, DT, W, NL, DL)
    bias = load_channels(bias_p, d, D, T, V, HAS_BIAS)
    h = apart(tl.zeros((1, 1, NT, DT, W, DL, NL), tl.float32))
    spans = tl.zeros((V, W, T, DT * DL // V), tl.float32)
    STEP: tl.constexpr = -T if ADJOINT else T
    first = s * SEGMENT + (SEGMENT - T if ADJOINT else 0)
    BC_p += (b.to(tl.int64) * (SEGMENTS * SEGMENT) + first) * ROW + narrow_offsets(ROW, T, NT, DT, W, NL, DL)
    if ADJOINT:
        BC_p += NL * NT
    next_v = load_wide(v_p, row, first, d, L, D, T, REVERSE, EVEN)
    next_raw = load_wide(dt_p, row, first, d, L, D, T, REVERSE, EVEN)
    if ADJOINT and HAS_Z:
        next_z = load_wide(z_p, row, first, d, L, D, T, REVERSE, EVEN)
    for i in tl.range(0, SEGMENT // T, num_stages=1):
        M = narrow_tile(BC_p)
        BC_p += STEP * ROW
        v, raw = spread(next_v.to(tl.float32), V), spread(next_raw.to(tl.float32), V)
        if ADJOINT and HAS_Z:
            z = spread(next_z.to(tl.float32), V)
        ahead = first + tl.where(i + 1 < SEGMENT // T, STEP, 0)
        next_v = load_wide(v_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        next_raw = load_wide(dt_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        if ADJOINT and HAS_Z:
            next_z = load_wide(z_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        at, inside = positions(first, L, T, REVERSE)
        valid, forget = flagged(flags_p, row, at, inside, FLAGS)
        counts = valid[None, None, :, None]
        if ADJOINT and HAS_Z:
            v *= z * sigmoid(z, FAST)
        if FLAGS:
            v = tl.where(counts, v, 0.0)
        dt, _ = step_size(raw, bias, True if EVEN and not FLAGS else counts, SOFTPLUS, EXACT, FAST)
        spans += settled(dt)
        exponent = spread_channels(dt, T, DT, W, DL) * A
        if FLAGS:
            exponent += forget[None, :, None, None, None, None, None]
        decay = apart(tl.exp2(exponent))
        if ADJOINT:
            _, h = run_rows_back(decay, spread_channels(v, T, DT, W, DL) * M, settled(h), T)
        else:
            _, _, h = run_rows(decay, spread_channels(dt * v, T, DT, W, DL) * M, settled(h), T)
        first = ahead
    segment = (b * SEGMENTS + s).to(tl.int64)
    tl.store(state_p + segment * (D * N) + of_state, flat(h, NT, DT, W, NL, DL), mask=exists)
    spans = tl.sum(gathered(spans), 0)
    tl.store(span_p + segment * D + d, spans, mask=d < D)


@triton.jit
def selective_scan_borders(
    state_p, span_p, A_p, resets_p, enter_p, out_p,
    D: tl.constexpr, N: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr, FLAGS: tl.constexpr,
    HAS_ENTER: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """The state that enters each segment, out (b, segments, d, n), from what each adds: programs are (block, batch).

    enter (b, d, n) is the state before the first segment; in the adjoint the gradient behind the last one. resets
    (b, segments) int32 is 1 where a segment passes nothing on.
    """
    b = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = i < D * N
    A = tl.load(A_p + i, mask=exists, other=0).to(tl.float32) * LOG2E
    h = tl.zeros((BLOCK,), tl.float32)
    if HAS_ENTER:
        h = tl.load(enter_p + b.to(tl.int64) * (D * N) + i, mask=exists, other=0).to(tl.float32)
    for k in range(SEGMENTS - 1):
        s = (b * SEGMENTS + (SEGMENTS - 1 - k if ADJOINT else k)).to(tl.int64)
        tl.store(out_p + s * (D * N) + i, h, mask=exists)
        span = tl.load(span_p + s * D + i // N, mask=exists, other=0)
        decay = tl.exp2(A * span)
        if FLAGS:
            decay = tl.where(tl.load(resets_p + s) != 0, 0.0, decay)
        h = decay * h + tl.load(state_p + s * (D * N) + i, mask=exists, other=0)
    s = (b * SEGMENTS + (0 if ADJOINT else SEGMENTS - 1)).to(tl.int64)
    tl.store(out_p + s * (D * N) + i, h, mask=exists)
