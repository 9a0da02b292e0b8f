"""Triton kernels of the causal convolution: each thread walks along the sequence with a few channels.

The window of past inputs stays in registers as float32, so every element is read once and
converted once. "Step" counts positions in the direction of the scan; with REVERSE step s is position L-1-s.

Shared parameters: x, y and their gradients (B, L, D); w (D, K); tail (B, K-1, D) in order of position; flags (B, L)
int8, by position: 1 = valid, 2 = the window does not reach past this step to those before it.
COUNT programs share a sequence, SPAN steps each, a multiple of UNROLL; the halo between two is read twice. EVEN: there
is nothing but whole spans and whole groups of rows, so that the walk needs no bounds.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _position(step, L: tl.constexpr, REVERSE: tl.constexpr):
    return L - 1 - step if REVERSE else step


@triton.jit
def _flag(flags, row, step, bound, L: tl.constexpr, REVERSE: tl.constexpr, FLAGS: tl.constexpr, CHECK: tl.constexpr):
    """The flags of a step; 1 where there are none; 0 before the sequence and from `bound` on, if CHECK."""
    inside = (step >= 0) & (step < bound) if CHECK else tl.full([], True, tl.int1)
    if FLAGS:
        return tl.load(flags + row * L + _position(step, L, REVERSE), mask=inside, other=0).to(tl.int32)
    else:
        return inside.to(tl.int32)


@triton.jit
def _inside(channels, D: tl.constexpr, CHANNELS: tl.constexpr):
    """Which channels there are: known to be all of them where they fill their blocks, so that no load is masked."""
    if D % CHANNELS == 0:
        return tl.full([CHANNELS], True, tl.int1)
    else:
        return channels < D


@triton.jit
def _zeros(CHANNELS: tl.constexpr, COUNT: tl.constexpr):
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors = vectors + (tl.zeros([CHANNELS], tl.float32),)
    return vectors


@triton.jit
def _taps(w, channels, inside, K: tl.constexpr):
    """The weights as K vectors, that of the position itself first."""
    taps = ()
    for m in tl.static_range(K):
        taps = taps + (tl.load(w + channels * K + (K - 1 - m), mask=inside, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _push(window, value):
    """The window one step on: the newest value first."""
    moved = (value,)
    for m in tl.static_range(len(window) - 1):
        moved = moved + (window[m],)
    return moved


@triton.jit
def _cut(window, flag):
    """Zeros in place of the window at a step that nothing before it reaches."""
    kept = ()
    for m in tl.static_range(len(window)):
        kept = kept + (tl.where((flag & 2) != 0, 0.0, window[m]),)
    return kept


@triton.jit
def _window_before(
    x, tail, flags, row, start, channels, inside,
    L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr,
    TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """The K-1 inputs before step `start`, the latest first; those before the sequence come from the tail."""
    window = _zeros(channels.shape[0], K - 1)
    for m in tl.static_range(K - 1):
        step = start - (K - 1) + m
        flag = _flag(flags, row, step, L, L, REVERSE, FLAGS, True)
        at = (row * L + _position(step, L, REVERSE)) * D
        value = tl.load(x + at + channels, mask=inside & ((flag & 1) != 0), other=0.0).to(tl.float32)
        if TAIL:
            place = _position(step + (K - 1), K - 1, REVERSE)
            at = (row * (K - 1) + place) * D
            before = tl.load(tail + at + channels, mask=inside & (step < 0), other=0.0)
            value += before.to(tl.float32)
        if RESETS:
            window = _cut(window, flag)
        window = _push(window, value)
    return window


@triton.jit
def _convolved(taps, base, value, window):
    """bias + sum of taps over the value and the window before it."""
    total = base + taps[0] * value
    for m in tl.static_range(len(window)):
        total += taps[m + 1] * window[m]
    return total


@triton.jit
def _part(
    array_0, array_1, array_2, SIZE_0: tl.constexpr, SIZE_1: tl.constexpr, SIZE_2: tl.constexpr, CHANNELS: tl.constexpr
):
    """Of three arrays the one that has this program's channels, the channels it has, and the first of them."""
    first = tl.program_id(0) * CHANNELS
    array, width, begin = array_2, tl.full([], SIZE_2, tl.int32), tl.full([], SIZE_0 + SIZE_1, tl.int32)
    if first < SIZE_0:
        array, width, begin = array_0, tl.full([], SIZE_0, tl.int32), tl.full([], 0, tl.int32)
    elif first < SIZE_0 + SIZE_1:
        array, width, begin = array_1, tl.full([], SIZE_1, tl.int32), tl.full([], SIZE_0, tl.int32)
    return array, width, begin


@triton.jit
def _walk_forward(
    x, w, bias, tail, flags, y, width, begin, SCAN: tl.constexpr,
    B: tl.constexpr, L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, SPAN: tl.constexpr,
    CHANNELS: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BIAS: tl.constexpr, TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """y of SPAN steps of one sequence; it has `width` of the channels from `begin` on, at SCAN of its leading axis."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = _inside(channels, D, CHANNELS)
    row = (tl.program_id(1) // COUNT).to(tl.int64)
    start = (tl.program_id(1) % COUNT) * SPAN
    end = tl.minimum(start + SPAN, L)
    taps = _taps(w, channels, inside, K)
    base = tl.zeros([CHANNELS], tl.float32)
    if BIAS:
        base += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    window = _window_before(x, tail, flags, row, start, channels, inside, L, D, K, REVERSE, TAIL, FLAGS, RESETS)
    for turn in range(SPAN // UNROLL):
        first = start + turn * UNROLL
        # all loads of the turn first, so that they are in flight together
        ahead = ()
        for i in tl.static_range(UNROLL):
            step = first + i
            flag = _flag(flags, row, step, end, L, REVERSE, FLAGS, not EVEN)
            at = (row * L + _position(step, L, REVERSE)) * D
            ahead = ahead + ((flag, tl.load(x + at + channels, mask=inside & ((flag & 1) != 0), other=0.0)),)
        for i in tl.static_range(UNROLL):
            step = first + i
            flag = ahead[i][0]
            value = ahead[i][1].to(tl.float32)
            if RESETS:
                window = _cut(window, flag)
            out = _convolved(taps, base, value, window)
            window = _push(window, value)
            if SILU:
                out = out / (1.0 + tl.exp2(-_LOG2E * out))
            if FLAGS:
                out = tl.where((flag & 1) != 0, out, 0.0)
            at = ((SCAN * B + row) * L + _position(step, L, REVERSE)) * width - begin
            there = inside if EVEN else inside & (step < end)
            tl.store(y + at + channels, out.to(y.dtype.element_ty), mask=there)


@triton.jit
def forward(
    x, w, bias, tail, flags, y,
    B: tl.constexpr, L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, SPAN: tl.constexpr,
    CHANNELS: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BIAS: tl.constexpr, TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """y of SPAN steps of one sequence; grid (blocks of channels, B * COUNT)."""
    _walk_forward(
        x, w, bias, tail, flags, y, D, 0, 0, B, L, D, K, COUNT, SPAN, CHANNELS, UNROLL, SILU, REVERSE, BIAS, TAIL,
        FLAGS, RESETS, EVEN,
    )  # fmt: skip


@triton.jit
def forward_parts(
    x, w, bias, tail, flags, started_0, started_1, started_2, y_0, y_1, y_2,
    B: tl.constexpr, L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, SPAN: tl.constexpr,
    CHANNELS: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BIAS: tl.constexpr, TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr, EVEN: tl.constexpr,
    SIZE_0: tl.constexpr, SIZE_1: tl.constexpr, SIZE_2: tl.constexpr,
):  # fmt: skip
    """As `forward`, of one of two scans: y_i (2, B, L, SIZE_i) have the channels one after the other, the reverse scan
    behind the other. Blocks of channels divide the sizes."""
    y, width, begin = _part(y_0, y_1, y_2, SIZE_0, SIZE_1, SIZE_2, CHANNELS)
    _walk_forward(
        x, w, bias, tail, flags, y, width, begin, 1 if REVERSE else 0, B, L, D, K, COUNT, SPAN, CHANNELS, UNROLL,
        SILU, REVERSE, BIAS, TAIL, FLAGS, RESETS, EVEN,
    )  # fmt: skip


@triton.jit
def _through(slope, out, SILU: tl.constexpr):
    """The gradient of what SiLU is taken of, from that of its result."""
    if SILU:
        share = 1.0 / (1.0 + tl.exp2(-_LOG2E * out))
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
    at = (row * L + _position(done, L, REVERSE)) * D
    ours = (done >= start) & (done < bound) if CHECK else done >= start
    own = gradient
    if FLAGS:
        flag = _flag(flags, row, done, bound, L, REVERSE, FLAGS, True)
        own = tl.where((flag & 1) != 0, gradient, 0.0)
    tl.store(dx + at + channels, own.to(dx.dtype.element_ty), mask=inside & ours)
    if TAIL:
        at = (row * (K - 1) + _position(done + (K - 1), K - 1, REVERSE)) * D
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
    inside = _inside(channels, D, CHANNELS)
    group = tl.program_id(1) // COUNT
    start = (tl.program_id(1) % COUNT) * SPAN
    end = tl.minimum(start + SPAN, L)
    taps = _taps(w, channels, inside, K)
    base = tl.zeros([CHANNELS], tl.float32)
    if BIAS:
        base += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    sums = _zeros(CHANNELS, K + 1)
    for row_in_group in range(ROWS):
        # where the group goes beyond the last row, that row again, and nothing of it counts
        real = group * ROWS + row_in_group < B
        row = tl.minimum(group * ROWS + row_in_group, B - 1).to(tl.int64)
        bound = tl.where(real, end, 0)
        window = _window_before(x, tail, flags, row, start, channels, inside, L, D, K, REVERSE, TAIL, FLAGS, RESETS)
        owed = _zeros(CHANNELS, K - 1)
        # bit m: this step is reached from m+1 steps before it
        reach = tl.full([], (1 << (K - 1)) - 1, tl.int32)
        for turn in range(SPAN // UNROLL):
            first = start + turn * UNROLL
            ahead = ()
            for i in tl.static_range(UNROLL):
                step = first + i
                flag = _flag(flags, row, step, bound, L, REVERSE, FLAGS, not EVEN)
                valid = inside & ((flag & 1) != 0)
                at = (row * L + _position(step, L, REVERSE)) * D
                value = tl.load(x + at + channels, mask=valid, other=0.0)
                at = ((SCAN * B + row) * L + _position(step, L, REVERSE)) * width - begin
                slope = tl.load(dy + at + channels, mask=valid, other=0.0)
                ahead = ahead + ((flag, value, slope),)
            for i in tl.static_range(UNROLL):
                step = first + i
                flag = ahead[i][0]
                value = ahead[i][1].to(tl.float32)
                if RESETS:
                    window = _cut(window, flag)
                    reach = tl.where((flag & 2) != 0, 0, reach)
                slope = _through(ahead[i][2].to(tl.float32), _convolved(taps, base, value, window), SILU)
                added = (sums[0] + slope * value,)
                for m in tl.static_range(K - 1):
                    added = added + (sums[m + 1] + slope * window[m],)
                sums = added + (sums[K] + slope,)
                window = _push(window, value)
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
            flag = _flag(flags, row, step, beyond, L, REVERSE, FLAGS, True)
            valid = inside & ((flag & 1) != 0)
            at = (row * L + _position(step, L, REVERSE)) * D
            value = tl.load(x + at + channels, mask=valid, other=0.0).to(tl.float32)
            at = ((SCAN * B + row) * L + _position(step, L, REVERSE)) * width - begin
            slope = tl.load(dy + at + channels, mask=valid, other=0.0).to(tl.float32)
            if RESETS:
                window = _cut(window, flag)
                reach = tl.where((flag & 2) != 0, 0, reach)
            slope = _through(slope, _convolved(taps, base, value, window), SILU)
            window = _push(window, value)
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
    dy, width, begin = _part(dy_0, dy_1, dy_2, SIZE_0, SIZE_1, SIZE_2, CHANNELS)
    _walk_backward(
        x, w, bias, tail, flags, dy, width, begin, 1 if REVERSE else 0, dx, partials, dtail, B, L, D, K, COUNT, SPAN,
        ROWS, CHANNELS, UNROLL, SILU, REVERSE, BIAS, TAIL, FLAGS, RESETS, EVEN,
    )  # fmt: skip
