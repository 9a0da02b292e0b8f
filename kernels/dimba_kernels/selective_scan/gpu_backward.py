"""GPU kernel of `selective_scan`: all gradients."""

# pyright: reportGeneralTypeIssues=false
# (to a type checker a function under @triton.jit never returns)

import triton
import triton.language as tl

from dimba_kernels.selective_scan.gpu_forward import flagged, positions, state_offsets
from dimba_kernels.selective_scan.gpu_rows import (
    LN2,
    LOG2E,
    apart,
    channels,
    flat,
    over_channels,
    over_rows,
    over_states,
    run_rows,
    run_rows_back,
    settled,
    states,
    step_size,
    tile,
)


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
def selective_scan_backward(
    u_p, dt_p, A_p, B_p, C_p, D_p, z_p, bias_p, flags_p, saved_p, dy_p, enter_p,
    du_p, ddt_p, dz_p, dB_p, dC_p, dA_p, dD_p, dbias_p, dstart_p,
    L: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SEGMENT: tl.constexpr, SAVE: tl.constexpr,
    T: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr,
    STAGES: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, FLAGS: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of channels over one segment: programs are (channel block, batch, segment).

    From the last step to the first, T at a time: their states again, from the one saved before the block of SAVE steps
    that they are in, running through the block's earlier steps, then the recurrence of the gradients backwards.
    enter (b, segments, d, n) holds the gradients of the states behind the segments.

    Sums over what other programs hold are left to the caller: dB, dC (channel blocks, b, l, n), dA (b segments, d, n),
    dD and dbias (b segments, d), all float32. dstart (b, d, n) is the gradient of the state before the first step.
    """
    DB: tl.constexpr = W * DL * DT
    SEGMENTS: tl.constexpr = (L + SEGMENT - 1) // SEGMENT
    PARTS: tl.constexpr = SAVE // T
    b, s = tl.program_id(1), tl.program_id(2)
    row = b.to(tl.int64) * L
    d = tl.program_id(0) * DB + tl.arange(0, DB)
    n = tl.arange(0, NL * NT)
    of_state, exists = state_offsets(D, N, DB, NL * NT)
    A = tile(tl.load(A_p + of_state, mask=exists, other=0).to(tl.float32) * LOG2E, NT, DT, W, NL, DL)
    segment = (b * SEGMENTS + s).to(tl.int64)
    later = tile(tl.load(enter_p + segment * (D * N) + of_state, mask=exists, other=0), NT, DT, W, NL, DL)
    bias = tl.zeros((DB,), tl.float32)
    skip = tl.zeros((DB,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_p + d, mask=d < D, other=0).to(tl.float32)
    if HAS_D:
        skip = tl.load(D_p + d, mask=d < D, other=0).to(tl.float32)
    dA = tl.zeros((1, 1, NT, DT, W, DL, NL), tl.float32)
    dD = tl.zeros((T, DB), tl.float32)
    dbias = tl.zeros((T, DB), tl.float32)
    partial = (tl.program_id(0) * tl.num_programs(1)).to(tl.int64) * L + row  # of this block's dB and dC

    first = (s + 1) * SEGMENT - T
    next_B = load_rows(B_p, flags_p, row, first, first < L, L, N, T, NL * NT, FLAGS, REVERSE)
    next_C = load_rows(C_p, flags_p, row, first, first < L, L, N, T, NL * NT, FLAGS, REVERSE)
    for i in tl.range(0, SEGMENT // T, num_stages=STAGES):
        B, C = next_B.to(tl.float32), next_C.to(tl.float32)
        first = (s + 1) * SEGMENT - (i + 2) * T
        more = (i + 1 < SEGMENT // T) & (first < L)
        next_B = load_rows(B_p, flags_p, row, first, more, L, N, T, NL * NT, FLAGS, REVERSE)
        next_C = load_rows(C_p, flags_p, row, first, more, L, N, T, NL * NT, FLAGS, REVERSE)
        block = (s + 1) * (SEGMENT // SAVE) - 1 - i // PARTS
        part = PARTS - 1 - i % PARTS
        first = block * SAVE
        before = saved_p + (b * ((L + SAVE - 1) // SAVE) + block).to(tl.int64) * (D * N)
        h = tile(tl.load(before + of_state, mask=exists & (first < L), other=0).to(tl.float32), NT, DT, W, NL, DL)
        for k in tl.static_range(PARTS - 1):
            # loaded even where not needed, which lets Triton load ahead
            at, inside = positions(first, L, T, REVERSE)
            valid, forget = flagged(flags_p, row, at, inside, FLAGS)
            wide, wide_valid = at[:, None] * D + d[None], valid[:, None] & (d < D)[None]
            u = tl.load(u_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
            raw = tl.load(dt_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
            B0 = load_rows(B_p, flags_p, row, first, True, L, N, T, NL * NT, FLAGS, REVERSE).to(tl.float32)
            if k < part:
                dt, _ = step_size(raw, bias[None], wide_valid, SOFTPLUS, EXACT)
                exponent = channels(dt, T, DT, W, DL) * A
                if FLAGS:
                    exponent += forget[None, :, None, None, None, None, None]
                added = channels(dt * u, T, DT, W, DL) * states(B0, T, NT, NL)
                _, _, h = run_rows(apart(tl.exp2(exponent)), added, settled(h), T)
            first += T
        first = block * SAVE + part * T
        at, inside = positions(first, L, T, REVERSE)
        valid, forget = flagged(flags_p, row, at, inside, FLAGS)
        wide, wide_inside = at[:, None] * D + d[None], inside[:, None] & (d < D)[None]
        wide_valid = valid[:, None] & (d < D)[None]
        narrow, narrow_inside = at[:, None] * N + n[None], inside[:, None] & (n < N)[None]
        u = tl.load(u_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
        raw = tl.load(dt_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
        dy = tl.load(dy_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
        dt, slope = step_size(raw, bias[None], wide_valid, SOFTPLUS, EXACT)
        if HAS_Z:
            z = tl.load(z_p + row * D + wide, mask=wide_valid, other=0).to(tl.float32)
            gate = 1.0 / (1.0 + tl.exp(-z))
            dz = dy * (gate * (1.0 + z * (1.0 - gate)))
            dy *= z * gate

        dt6 = channels(dt, T, DT, W, DL)
        x6 = channels(dt * u, T, DT, W, DL)
        dy6 = channels(dy, T, DT, W, DL)
        B6 = states(B, T, NT, NL)
        C6 = states(C, T, NT, NL)
        exponent = dt6 * A
        if FLAGS:
            exponent += forget[None, :, None, None, None, None, None]
        decay = apart(tl.exp2(exponent))
        before, after, _ = run_rows(decay, x6 * B6, h, T)
        before, after = apart(before), apart(after)
        dC = over_channels(after * dy6, T, NT, NL)
        tl.store(dC_p + partial * N + narrow, dC.to(dC_p.dtype.element_ty), mask=narrow_inside)
        if HAS_Z:
            y = over_states(after * C6, T, DT, W, DL)
            if HAS_D:
                y += skip[None] * u
            tl.store(dz_p + row * D + wide, (dz * y).to(dz_p.dtype.element_ty), mask=wide_inside)

        kept = decay * before
        gradient, later = run_rows_back(decay, dy6 * C6, later, T)
        gradient = apart(gradient)
        dB = over_channels(gradient * x6, T, NT, NL)
        tl.store(dB_p + partial * N + narrow, dB.to(dB_p.dtype.element_ty), mask=narrow_inside)
        of_decay = gradient * kept  # times what stands in the exponent: its gradient
        dA += over_rows(of_decay * dt6)
        dx = over_states(gradient * B6, T, DT, W, DL)
        ddt = (over_states(of_decay * A, T, DT, W, DL) * LN2 + dx * u) * slope
        du = dx * dt
        if HAS_D:
            du += skip[None] * dy
            dD += dy * u
        if HAS_BIAS:
            dbias += ddt
        if FLAGS:
            du = tl.where(wide_valid, du, 0.0)
            ddt = tl.where(wide_valid, ddt, 0.0)
        tl.store(du_p + row * D + wide, du.to(du_p.dtype.element_ty), mask=wide_inside)
        tl.store(ddt_p + row * D + wide, ddt.to(ddt_p.dtype.element_ty), mask=wide_inside)

    tl.store(dA_p + segment * (D * N) + of_state, flat(dA, NT, DT, W, NL, DL), mask=exists)
    if HAS_D:
        tl.store(dD_p + segment * D + d, tl.sum(dD, 0), mask=d < D)
    if HAS_BIAS:
        tl.store(dbias_p + segment * D + d, tl.sum(dbias, 0), mask=d < D)
    if s == 0:
        tl.store(dstart_p + b.to(tl.int64) * (D * N) + of_state, flat(later, NT, DT, W, NL, DL), mask=exists)
