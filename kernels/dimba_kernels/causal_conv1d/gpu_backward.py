"""Triton kernels of the causal convolution, backward: the walk of the forward pass again, and the gradients behind it.

Parameters are those of gpu_forward.py.
"""

import triton
import triton.language as tl

from dimba_kernels.causal_conv1d.gpu_window import (
    LOG2E,
    channels_there,
    convolved,
    cut_off,
    flag_at,
    part_of,
    position_of,
    pushed,
    taps_of,
    window_before,
    zero_vectors,
)


@triton.jit
def _through(slope, out, SILU: tl.constexpr):
    """The gradient of what SiLU is taken of, from that of its result."""
    if SILU:
        share = 1.0 / (1.0 + tl.exp2(-LOG2E * out))
        slope *= share * (1.0 + out * (1.0 - share))
    return slope


@triton.jit
def _paid(owed, taps, slope, reach, K: tl.constexpr, RESETS: tl.constexpr):
    """The open gradients of the inputs with what a step adds to them; the step's own first, the finished one last."""
    paid = (taps[0] * slope,)
    for m in tl.static_range(K - 1):
        if RESETS:
            paid = paid + (owed[m] + tl.where((reach >> m) & 1 != 0, taps[m + 1] * slope, 0.0),)
        else:
            paid = paid + (owed[m] + taps[m + 1] * slope,)
    return paid


@triton.jit
def _all_but_last(vectors):
    kept = ()
    for m in tl.static_range(len(vectors) - 1):
        kept = kept + (vectors[m],)
    return kept


@triton.jit
def _store_gradient(
    gradient, done, dx, dtail, flags, row, start, bound, channels, inside,
    L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr,
    TAIL: tl.constexpr, FLAGS: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """The gradient of step `done`, if it is one of the span; before the sequence it is one of the tail's."""
    at = (row * L + position_of(done, L, REVERSE)) * D
    ours = (done >= start) & (done < bound) if CHECK else done >= start
    own = gradient
    if FLAGS:
        flag = flag_at(flags, row, done, bound, L, REVERSE, FLAGS, True)
        own = tl.where((flag & 1) != 0, gradient, 0.0)
    tl.store(dx + at + channels, own.to(dx.dtype.element_ty), mask=inside & ours)
    if TAIL:
        at = (row * (K - 1) + position_of(done + (K - 1), K - 1, REVERSE)) * D
        # bound is 0 in a row that does not exist
        before = (done < 0) & (start == 0) & (bound > 0)
        tl.store(dtail + at + channels, gradient.to(dtail.dtype.element_ty), mask=inside & before)


@triton.jit
def _walk_backward(
    x, w, bias, tail, flags, dy, width, begin, SCAN: tl.constexpr, dx, partials, dtail,
    B: tl.constexpr, L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BIAS: tl.constexpr, TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """As `backward`; dy has `width` of the channels from `begin` on, at SCAN of its leading axis."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels_there(channels, D, CHANNELS)
    group = tl.program_id(1) // COUNT
    start = (tl.program_id(1) % COUNT) * SPAN
    end = tl.minimum(start + SPAN, L)
    taps = taps_of(w, channels, inside, K)
    base = tl.zeros([CHANNELS], tl.float32)
    if BIAS:
        base += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    sums = zero_vectors(CHANNELS, K + 1)
    for row_in_group in range(ROWS):
        # where the group goes beyond the last row, that row again, and nothing of it counts
        real = group * ROWS + row_in_group < B
        row = tl.minimum(group * ROWS + row_in_group, B - 1).to(tl.int64)
        bound = tl.where(real, end, 0)
        window = window_before(x, tail, flags, row, start, channels, inside, L, D, K, REVERSE, TAIL, FLAGS, RESETS)
        owed = zero_vectors(CHANNELS, K - 1)
        # bit m: this step is reached from m+1 steps before it
        reach = tl.full([], (1 << (K - 1)) - 1, tl.int32)
        for turn in range(SPAN // UNROLL):
            first = start + turn * UNROLL
            ahead = ()
            for i in tl.static_range(UNROLL):
                step = first + i
                flag = flag_at(flags, row, step, bound, L, REVERSE, FLAGS, not EVEN)
                valid = inside & ((flag & 1) != 0)
                at = (row * L + position_of(step, L, REVERSE)) * D
                value = tl.load(x + at + channels, mask=valid, other=0.0)
                at = ((SCAN * B + row) * L + position_of(step, L, REVERSE)) * width - begin
                slope = tl.load(dy + at + channels, mask=valid, other=0.0)
                ahead = ahead + ((flag, value, slope),)
            for i in tl.static_range(UNROLL):
                step = first + i
                flag = ahead[i][0]
                value = ahead[i][1].to(tl.float32)
                if RESETS:
                    window = cut_off(window, flag)
                    reach = tl.where((flag & 2) != 0, 0, reach)
                slope = _through(ahead[i][2].to(tl.float32), convolved(taps, base, value, window), SILU)
                added = (sums[0] + slope * value,)
                for m in tl.static_range(K - 1):
                    added = added + (sums[m + 1] + slope * window[m],)
                sums = added + (sums[K] + slope,)
                window = pushed(window, value)
                paid = _paid(owed, taps, slope, reach, K, RESETS)
                reach = (reach << 1) | 1
                _store_gradient(
                    paid[K - 1], step - (K - 1), dx, dtail, flags, row, start, bound, channels, inside,
                    L, D, K, REVERSE, TAIL, FLAGS, not EVEN,
                )  # fmt: skip
                owed = _all_but_last(paid)
        # beyond the span: what the steps there owe to its last ones, and nothing to dw
        beyond = tl.where(real, L, 0)
        for i in tl.static_range(K - 1):
            step = start + SPAN + i
            flag = flag_at(flags, row, step, beyond, L, REVERSE, FLAGS, True)
            valid = inside & ((flag & 1) != 0)
            at = (row * L + position_of(step, L, REVERSE)) * D
            value = tl.load(x + at + channels, mask=valid, other=0.0).to(tl.float32)
            at = ((SCAN * B + row) * L + position_of(step, L, REVERSE)) * width - begin
            slope = tl.load(dy + at + channels, mask=valid, other=0.0).to(tl.float32)
            if RESETS:
                window = cut_off(window, flag)
                reach = tl.where((flag & 2) != 0, 0, reach)
            slope = _through(slope, convolved(taps, base, value, window), SILU)
            window = pushed(window, value)
            paid = _paid(owed, taps, slope, reach, K, RESETS)
            reach = (reach << 1) | 1
            _store_gradient(
                paid[K - 1], step - (K - 1), dx, dtail, flags, row, start, bound, channels, inside,
                L, D, K, REVERSE, TAIL, FLAGS, True,
            )  # fmt: skip
            owed = _all_but_last(paid)
    for m in tl.static_range(K + 1):
        at = (tl.program_id(1) * (K + 1) + m).to(tl.int64) * D
        tl.store(partials + at + channels, sums[m], mask=inside)


@triton.jit
def backward(
    x, w, bias, tail, flags, dy, dx, partials, dtail,
    B: tl.constexpr, L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BIAS: tl.constexpr, TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """dx of SPAN steps of ROWS sequences each, and what they add to dw and dbias; grid (channels, groups * COUNT).

    partials (groups * COUNT, K+1, D) float32: the taps, that of the position itself first, then the bias. dtail is
    written if TAIL. The gradient of an input is known K-1 steps after it: `owed` holds those still open, the newest
    first, and the walk goes K-1 steps beyond the span.
    """
    _walk_backward(
        x, w, bias, tail, flags, dy, D, 0, 0, dx, partials, dtail, B, L, D, K, COUNT, SPAN, ROWS, CHANNELS, UNROLL,
        SILU, REVERSE, BIAS, TAIL, FLAGS, RESETS, EVEN,
    )  # fmt: skip


@triton.jit
def backward_parts(
    x, w, bias, tail, flags, dy_0, dy_1, dy_2, dx, partials, dtail,
    B: tl.constexpr, L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BIAS: tl.constexpr, TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr, EVEN: tl.constexpr,
    SIZE_0: tl.constexpr, SIZE_1: tl.constexpr, SIZE_2: tl.constexpr,
):  # fmt: skip
    """As `backward`, of one of two scans, whose dy_i lie as the results of `forward_parts`."""
    dy, width, begin = part_of(dy_0, dy_1, dy_2, SIZE_0, SIZE_1, SIZE_2, CHANNELS)
    _walk_backward(
        x, w, bias, tail, flags, dy, width, begin, 1 if REVERSE else 0, dx, partials, dtail, B, L, D, K, COUNT, SPAN,
        ROWS, CHANNELS, UNROLL, SILU, REVERSE, BIAS, TAIL, FLAGS, RESETS, EVEN,
    )  # fmt: skip
