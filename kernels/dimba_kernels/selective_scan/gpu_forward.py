"""GPU kernels of `selective_scan`: the forward scan, and the states that enter segments of the sequence."""

# pyright: reportGeneralTypeIssues=false
# (to a type checker a function under @triton.jit never returns)

import triton
import triton.language as tl

from dimba_kernels.selective_scan.gpu_rows import (
    FORGET,
    LOG2E,
    apart,
    channels,
    flat,
    over_states,
    run_rows,
    run_rows_back,
    settled,
    states,
    step_size,
    tile,
)


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
def load_rows(
    p, flags_p, row, first, more,
    L: tl.constexpr, N: tl.constexpr, T: tl.constexpr, NB: tl.constexpr, FLAGS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Rows of B or C [T, NB] at scan steps first ..., zeros unless `more`.

    Their few bytes a thread are too narrow for the asynchronous copies with which Triton loads ahead, so the loops do
    that themselves: they load the rows of the next tile before they work on this one.
    """
    at, inside = positions(first, L, T, REVERSE)
    valid, _ = flagged(flags_p, row, at, inside, FLAGS)
    n = tl.arange(0, NB)[None]
    return tl.load(p + row * N + at[:, None] * N + n, mask=(valid & more)[:, None] & (n < N), other=0)


@triton.jit
def state_offsets(D: tl.constexpr, N: tl.constexpr, DB: tl.constexpr, NB: tl.constexpr):
    """Of this program's states in a (d, n) array, and which of them exist: [channels, states]."""
    d = (tl.program_id(0) * DB + tl.arange(0, DB))[:, None]
    n = tl.arange(0, NB)[None]
    return d * N + n, (d < D) & (n < N)


@triton.jit
def selective_scan_forward(
    u_p, dt_p, A_p, B_p, C_p, D_p, z_p, bias_p, flags_p, start_p, y_p, last_p, saved_p,
    L: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SEGMENT: tl.constexpr, SAVE: tl.constexpr,
    T: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr,
    STAGES: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, FLAGS: tl.constexpr,
    HAS_START: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """y of a block of channels over one segment: programs are (channel block, batch, segment).

    start (b, segments, d, n) float32 holds the states that enter the segments. saved (b, L / SAVE, d, n) takes the
    state before every SAVE steps; SAVE = 0 saves none. last (b, d, n) is written by the last segment's program.
    """
    DB: tl.constexpr = W * DL * DT
    SEGMENTS: tl.constexpr = (L + SEGMENT - 1) // SEGMENT
    b, s = tl.program_id(1), tl.program_id(2)
    row = b.to(tl.int64) * L
    d = tl.program_id(0) * DB + tl.arange(0, DB)
    of_state, exists = state_offsets(D, N, DB, NL * NT)
    A = tile(tl.load(A_p + of_state, mask=exists, other=0).to(tl.float32) * LOG2E, NT, DT, W, NL, DL)
    if HAS_START:
        h = tile(
            tl.load(start_p + (b * SEGMENTS + s).to(tl.int64) * (D * N) + of_state, mask=exists, other=0),
            NT,
            DT,
            W,
            NL,
            DL,
        )
    else:
        h = apart(tl.zeros((1, 1, NT, DT, W, DL, NL), tl.float32))
    bias = tl.zeros((DB,), tl.float32)
    skip = tl.zeros((DB,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=d < D, other=0).to(tl.float32)
    if HAS_D:
        skip = tl.load(D_p + d, mask=d < D, other=0).to(tl.float32)

    start = s * SEGMENT
    next_B = load_rows(B_p, flags_p, row, start, start < L, L, N, T, NL * NT, FLAGS, REVERSE)
    next_C = load_rows(C_p, flags_p, row, start, start < L, L, N, T, NL * NT, FLAGS, REVERSE)
    for i in tl.range(0, SEGMENT // T, num_stages=STAGES):
        first = start + i * T
        B, C = next_B.to(tl.float32), next_C.to(tl.float32)
        more = first + T < L
        next_B = load_rows(B_p, flags_p, row, first + T, more, L, N, T, NL * NT, FLAGS, REVERSE)
        next_C = load_rows(C_p, flags_p, row, first + T, more, L, N, T, NL * NT, FLAGS, REVERSE)
        at, inside = positions(first, L, T, REVERSE)
        valid, forget = flagged(flags_p, row, at, inside, FLAGS)
        wide, wide_valid = at[:, None] * D + d[None], valid[:, None] & (d < D)[None]
        u = tl.load(u_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
        raw = tl.load(dt_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
        dt, _ = step_size(raw, bias[None], wide_valid, SOFTPLUS)
        if SAVE > 0:
            if (i % (SAVE // T) == 0) & (first < L):
                block = (b * ((L + SAVE - 1) // SAVE) + first // SAVE).to(tl.int64)
                tl.store(
                    saved_p + block * (D * N) + of_state,
                    flat(h, NT, DT, W, NL, DL).to(saved_p.dtype.element_ty),
                    mask=exists,
                )
        exponent = channels(dt, T, DT, W, DL) * A
        if FLAGS:
            exponent += forget[None, :, None, None, None, None, None]
        added = channels(dt * u, T, DT, W, DL) * states(B, T, NT, NL)
        _, after, h = run_rows(apart(tl.exp2(exponent)), added, settled(h), T)
        y = over_states(after * states(C, T, NT, NL), T, DT, W, DL)
        if HAS_D:
            y += skip[None] * u
        if HAS_Z:
            z = tl.load(z_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
            y *= z / (1.0 + tl.exp(-z))
        if FLAGS:
            y = tl.where(wide_valid, y, 0.0)
        tl.store(y_p + row * D + wide, y.to(y_p.dtype.element_ty), mask=inside[:, None] & (d < D)[None])
    if s == SEGMENTS - 1:
        tl.store(last_p + b.to(tl.int64) * (D * N) + of_state, flat(h, NT, DT, W, NL, DL), mask=exists)


@triton.jit
def selective_scan_segments(
    v_p, dt_p, A_p, M_p, z_p, bias_p, flags_p, state_p, span_p,
    L: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SEGMENT: tl.constexpr,
    T: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr,
    STAGES: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, FLAGS: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """What each segment adds to the state: programs are (channel block, batch, segment).

    Forward (v = u, M = B): the state after the segment if it began at zero. Adjoint (v = the cotangent of y, M = C):
    the gradient of the state before the segment, were that of the state after it zero. To state (b, segments, d, n).
    span (b, segments, d) takes the sum of the steps: the segment's decay is exp(A span).
    """
    DB: tl.constexpr = W * DL * DT
    SEGMENTS: tl.constexpr = (L + SEGMENT - 1) // SEGMENT
    b, s = tl.program_id(1), tl.program_id(2)
    row = b.to(tl.int64) * L
    d = tl.program_id(0) * DB + tl.arange(0, DB)
    n = tl.arange(0, NL * NT)
    of_state, exists = state_offsets(D, N, DB, NL * NT)
    A = tile(tl.load(A_p + of_state, mask=exists, other=0).to(tl.float32) * LOG2E, NT, DT, W, NL, DL)
    bias = tl.zeros((DB,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=d < D, other=0).to(tl.float32)
    h = apart(tl.zeros((1, 1, NT, DT, W, DL, NL), tl.float32))
    spans = tl.zeros((T, DB), tl.float32)
    for i in tl.range(0, SEGMENT // T, num_stages=STAGES):
        first = s * SEGMENT + (SEGMENT // T - 1 - i if ADJOINT else i) * T
        at, inside = positions(first, L, T, REVERSE)
        valid, forget = flagged(flags_p, row, at, inside, FLAGS)
        wide, wide_valid = at[:, None] * D + d[None], valid[:, None] & (d < D)[None]
        narrow, narrow_valid = at[:, None] * N + n[None], valid[:, None] & (n < N)[None]
        v = tl.load(v_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
        raw = tl.load(dt_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
        M = tl.load(M_p + row * N + narrow, mask=narrow_valid, other=0).to(tl.float32)
        dt, _ = step_size(raw, bias[None], wide_valid, SOFTPLUS)
        spans += settled(dt)
        exponent = channels(dt, T, DT, W, DL) * A
        if FLAGS:
            exponent += forget[None, :, None, None, None, None, None]
        decay = apart(tl.exp2(exponent))
        if ADJOINT:
            if HAS_Z:
                z = tl.load(z_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
                v *= z / (1.0 + tl.exp(-z))
            added = channels(v, T, DT, W, DL) * states(M, T, NT, NL)
            _, h = run_rows_back(decay, added, settled(h), T)
        else:
            added = channels(dt * v, T, DT, W, DL) * states(M, T, NT, NL)
            _, _, h = run_rows(decay, added, settled(h), T)
    segment = (b * SEGMENTS + s).to(tl.int64)
    tl.store(state_p + segment * (D * N) + of_state, flat(h, NT, DT, W, NL, DL), mask=exists)
    tl.store(span_p + segment * D + d, tl.sum(spans, 0), mask=d < D)


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
    for k in range(SEGMENTS):
        s = (b * SEGMENTS + (SEGMENTS - 1 - k if ADJOINT else k)).to(tl.int64)
        tl.store(out_p + s * (D * N) + i, h, mask=exists)
        span = tl.load(span_p + s * D + i // N, mask=exists, other=0)
        decay = tl.exp2(A * span)
        if FLAGS:
            decay = tl.where(tl.load(resets_p + s) != 0, 0.0, decay)
        h = decay * h + tl.load(state_p + s * (D * N) + i, mask=exists, other=0)
