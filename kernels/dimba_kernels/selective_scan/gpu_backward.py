"""GPU kernel of `selective_scan`: all gradients."""

# pyright: reportGeneralTypeIssues=false
# (to a type checker a function under @triton.jit never returns)

import triton
import triton.language as tl

from dimba_kernels.selective_scan.gpu_forward import (
    channel_offsets,
    flagged,
    load_channels,
    load_wide,
    positions,
    state_offsets,
    store_wide,
)
from dimba_kernels.selective_scan.gpu_rows import (
    LN2,
    LOG2E,
    apart,
    flat,
    gathered,
    narrow_offsets,
    narrow_tile,
    on_tile,
    over_rows,
    over_states_spread,
    run_rows,
    run_rows_back,
    settled,
    spread,
    spread_channels,
    state_offsets_on_tile,
    store_sums,
    three_spread_channels,
    tile,
    two_over_states_spread,
)
from dimba_kernels.selective_scan.gpu_steps import sigmoid, step_size


@triton.jit
def load_saved(
    p, block, first, L: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SAVE: tl.constexpr, NT: tl.constexpr,
    DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The state before the block of SAVE steps in which step `first` is: [NL, DL, W, DT, 1, NT], in its dtype."""
    at, exists = state_offsets_on_tile(block, D, N, NT, DT, W, NL, DL)
    at = p + (first // SAVE).to(tl.int64) * (D * N) + at
    if EVEN and N == NL * NT:
        return tl.load(at)
    else:
        return tl.load(at, mask=exists & (first // SAVE * SAVE < L), other=0)


@triton.jit
def selective_scan_backward(
    u_p, dt_p, A_p, BC_p, D_p, z_p, bias_p, flags_p, saved_p, dy_p, enter_p, first_block_p,
    _du_p, _ddt_p, _dz_p, _dA_p, _dD_p, _dbias_p, _dstart_p,
    du_p, ddt_p, dz_p, dA_p, dD_p, dbias_p, dstart_p, dBC_p,
    L: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SEGMENT: tl.constexpr, SAVE: tl.constexpr,
    T: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr,
    V: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, FLAGS: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of channels over one segment: programs are (channel block, batch, segment).

    From the last step to the first, T at a time: their states again, then the recurrence of the gradients backwards.
    The state before every SAVE steps is saved; with the last tile of such a block the scan runs through the others, two
    or four in all, and keeps the states before them.
    enter (b, segments, d, n) holds the gradients of the states behind the segments.

    A launch takes the channel blocks from first_block on, and may go on with the outputs of another, but for dBC. Sums
    over what other programs hold are left to the caller: dBC (channel blocks of the launch, b, steps, 2, states), which
    lies like B and C, dA (b segments, d, n), dD and dbias (b segments, d). dstart (b, d, n) is the gradient of the
    state before the first step.
    """
    DB: tl.constexpr = W * DL * DT
    ROW: tl.constexpr = 2 * NL * NT
    SEGMENTS: tl.constexpr = (L + SEGMENT - 1) // SEGMENT
    TILES: tl.constexpr = SAVE // T
    tl.static_assert((SAVE == 2 * T or SAVE == 4 * T) and SEGMENT % SAVE == 0)
    WHOLE: tl.constexpr = EVEN and not FLAGS
    block = tl.load(first_block_p) + tl.program_id(0)
    b, s = tl.program_id(1), tl.program_id(2)
    row = b.to(tl.int64) * L
    d = channel_offsets(block, W, DT * DL)
    of_state, exists = state_offsets(block, D, N, DB, NL * NT)
    A = tile(tl.load(A_p + of_state, mask=exists, other=0).to(tl.float32) * LOG2E, NT, DT, W, NL, DL)
    segment = (b * SEGMENTS + s).to(tl.int64)
    later = tile(tl.load(enter_p + segment * (D * N) + of_state, mask=exists, other=0), NT, DT, W, NL, DL)
    bias = load_channels(bias_p, d, D, T, V, HAS_BIAS)
    skip = load_channels(D_p, d, D, T, V, HAS_D)
    dA = tl.zeros((1, 1, NT, DT, W, DL, NL), tl.float32)
    dD = tl.zeros((V, W, T, DT * DL // V), tl.float32)
    dbias = tl.zeros((V, W, T, DT * DL // V), tl.float32)

    start = s * SEGMENT
    first = start + SEGMENT - T
    steps = b.to(tl.int64) * (SEGMENTS * SEGMENT) + first
    BC_p += steps * ROW + narrow_offsets(ROW, T, NT, DT, W, NL, DL)
    partial = tl.program_id(0).to(tl.int64) * tl.num_programs(1) * (SEGMENTS * SEGMENT)
    dBC_p += (partial + steps) * ROW
    saved_p += b.to(tl.int64) * ((L + SAVE - 1) // SAVE * D * N)

    next_u = load_wide(u_p, row, first, d, L, D, T, REVERSE, EVEN)
    next_raw = load_wide(dt_p, row, first, d, L, D, T, REVERSE, EVEN)
    next_dy = load_wide(dy_p, row, first, d, L, D, T, REVERSE, EVEN)
    if HAS_Z:
        next_z = load_wide(z_p, row, first, d, L, D, T, REVERSE, EVEN)
    next_saved = load_saved(saved_p, block, first, L, D, N, SAVE, NT, DT, W, NL, DL, EVEN)
    # the states before the tiles 0, 1 and 2 of a block of four; that before its last one is used at once
    h0 = tl.zeros_like(later)
    if TILES == 4:
        h1, h2 = h0, h0
    for _i in tl.range(0, SEGMENT // T, num_stages=1):
        B, C = narrow_tile(BC_p), narrow_tile(BC_p + NL * NT)
        u, raw = spread(next_u.to(tl.float32), V), spread(next_raw.to(tl.float32), V)
        dy = spread(next_dy.to(tl.float32), V)
        if HAS_Z:
            z = spread(next_z.to(tl.float32), V)
        ahead = tl.maximum(first - T, start)  # the last tile loads itself again
        next_u = load_wide(u_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        next_raw = load_wide(dt_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        next_dy = load_wide(dy_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        if HAS_Z:
            next_z = load_wide(z_p, row, ahead, d, L, D, T, REVERSE, EVEN)
        place = first // T % TILES
        h = h0
        if TILES == 4:
            h = tl.where(place == 0, h0, tl.where(place == 1, h1, h2))
        if place == TILES - 1:  # a block begins, from behind
            h = apart(on_tile(next_saved.to(tl.float32)))
            next_saved = load_saved(
                saved_p, block, tl.maximum(first - SAVE, start), L, D, N, SAVE, NT, DT, W, NL, DL, EVEN
            )
            if TILES == 4:
                u0 = load_wide(u_p, row, first - 3 * T, d, L, D, T, REVERSE, EVEN)
                raw0 = load_wide(dt_p, row, first - 3 * T, d, L, D, T, REVERSE, EVEN)
                u1 = load_wide(u_p, row, first - 2 * T, d, L, D, T, REVERSE, EVEN)
                raw1 = load_wide(dt_p, row, first - 2 * T, d, L, D, T, REVERSE, EVEN)
            for back in tl.static_range(TILES - 1, 0, -1):
                if back == TILES - 1:
                    h0 = h
                elif back == TILES - 2:
                    h1 = h
                else:
                    h2 = h
                if back == 1:
                    past_u, past_raw = next_u, next_raw
                elif back == 2:
                    past_u, past_raw = u1, raw1
                else:
                    past_u, past_raw = u0, raw0
                _at, past = positions(first - back * T, L, T, REVERSE)
                past, forget = flagged(flags_p, row, _at, past, FLAGS)
                past = past[None, None, :, None]
                u_j, raw_j = spread(past_u.to(tl.float32), V), spread(past_raw.to(tl.float32), V)
                if FLAGS:
                    u_j = tl.where(past, u_j, 0.0)
                dt_j, _slope = step_size(raw_j, bias, True if WHOLE else past, SOFTPLUS, EXACT, FAST)
                exponent = spread_channels(dt_j, T, DT, W, DL) * A
                if FLAGS:
                    exponent += forget[None, :, None, None, None, None, None]
                added = spread_channels(dt_j * u_j, T, DT, W, DL) * narrow_tile(BC_p - back * (T * ROW))
                _kept, _after, h = run_rows(apart(tl.exp2(exponent)), added, settled(h), T)
        at, inside = positions(first, L, T, REVERSE)
        valid, forget = flagged(flags_p, row, at, inside, FLAGS)
        counts = valid[None, None, :, None]
        if FLAGS:
            u, dy = tl.where(counts, u, 0.0), tl.where(counts, dy, 0.0)
        dt, slope = step_size(raw, bias, True if WHOLE else counts, SOFTPLUS, EXACT, FAST)
        if HAS_Z:
            if FLAGS:
                z = tl.where(counts, z, 0.0)
            gate = sigmoid(z, FAST)
            dz = dy * (gate * (1.0 + z * (1.0 - gate)))
            dy *= z * gate
        if W > 1:
            dt6, x6, dy6 = three_spread_channels(dt, dt * u, dy, T, DT, W, NL, DL)
        else:  # where there is none to wait for, an exchange costs its instructions
            dt6 = spread_channels(dt, T, DT, W, DL)
            x6 = spread_channels(dt * u, T, DT, W, DL)
            dy6 = spread_channels(dy, T, DT, W, DL)

        exponent = dt6 * A
        if FLAGS:
            exponent += forget[None, :, None, None, None, None, None]
        decay = apart(tl.exp2(exponent))
        kept, after, _last = run_rows(decay, x6 * B, settled(h), T)
        kept, after = apart(kept), apart(after)
        store_sums(dBC_p + NL * NT, after * dy6, T, NT, W, NL, DL)
        if HAS_Z:
            y = over_states_spread(after * C, T, DT, W, DL, V)
            if HAS_D:
                y += skip * u
            store_wide(dz_p, row, at, inside, d, dz * y, D, EVEN)

        gradient, later = run_rows_back(decay, dy6 * C, settled(later), T)
        gradient = apart(gradient)
        store_sums(dBC_p, gradient * x6, T, NT, W, NL, DL)
        of_decay = gradient * kept  # times what stands in the exponent: its gradient
        dA += over_rows(of_decay * dt6)
        dx, ddt = two_over_states_spread(gradient * B, of_decay * A, T, DT, W, DL, V)
        ddt = (ddt * LN2 + dx * u) * slope
        du = dx * dt
        if HAS_D:
            du += skip * dy
            dD += settled(dy * u)
        if FLAGS:
            du, ddt = tl.where(counts, du, 0.0), tl.where(counts, ddt, 0.0)
        if HAS_BIAS:
            dbias += ddt
        store_wide(du_p, row, at, inside, d, du, D, EVEN)
        store_wide(ddt_p, row, at, inside, d, ddt, D, EVEN)
        first = ahead
        BC_p -= T * ROW
        dBC_p -= T * ROW

    tl.store(dA_p + segment * (D * N) + of_state, flat(dA, NT, DT, W, NL, DL), mask=exists)
    if HAS_D:
        tl.store(dD_p + segment * D + d, tl.sum(gathered(dD), 0), mask=d < D)
    if HAS_BIAS:
        tl.store(dbias_p + segment * D + d, tl.sum(gathered(dbias), 0), mask=d < D)
    if s == 0:
        tl.store(dstart_p + b.to(tl.int64) * (D * N) + of_state, flat(later, NT, DT, W, NL, DL), mask=exists)
