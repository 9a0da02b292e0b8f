"""What the Triton kernels of the causal convolution share: flags, weights, and the window of past inputs.

Parameters are those of gpu_forward.py.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def position_of(step, L: tl.constexpr, REVERSE: tl.constexpr):
    return L - 1 - step if REVERSE else step


@triton.jit
def flag_at(flags, row, step, bound, L: tl.constexpr, REVERSE: tl.constexpr, FLAGS: tl.constexpr, CHECK: tl.constexpr):
    """The flags of a step; 1 where there are none; 0 before the sequence and from `bound` on, if CHECK."""
    inside = (step >= 0) & (step < bound) if CHECK else tl.full([], True, tl.int1)
    if FLAGS:
        return tl.load(flags + row * L + position_of(step, L, REVERSE), mask=inside, other=0).to(tl.int32)
    else:
        return inside.to(tl.int32)


@triton.jit
def channels_there(channels, D: tl.constexpr, CHANNELS: tl.constexpr):
    """Which channels there are: known to be all of them where they fill their blocks, so that no load is masked."""
    if D % CHANNELS == 0:
        return tl.full([CHANNELS], True, tl.int1)
    else:
        return channels < D


@triton.jit
def zero_vectors(CHANNELS: tl.constexpr, COUNT: tl.constexpr):
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors = vectors + (tl.zeros([CHANNELS], tl.float32),)
    return vectors


@triton.jit
def taps_of(w, channels, inside, K: tl.constexpr):
    """The weights as K vectors, that of the position itself first."""
    taps = ()
    for m in tl.static_range(K):
        taps = taps + (tl.load(w + channels * K + (K - 1 - m), mask=inside, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def pushed(window, value):
    """The window one step on: the newest value first."""
    moved = (value,)
    for m in tl.static_range(len(window) - 1):
        moved = moved + (window[m],)
    return moved


@triton.jit
def cut_off(window, flag):
    """Zeros in place of the window at a step that nothing before it reaches."""
    kept = ()
    for m in tl.static_range(len(window)):
        kept = kept + (tl.where((flag & 2) != 0, 0.0, window[m]),)
    return kept


@triton.jit
def window_before(
    x, tail, flags, row, start, channels, inside,
    L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr,
    TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """The K-1 inputs before step `start`, the latest first; those before the sequence come from the tail."""
    window = zero_vectors(channels.shape[0], K - 1)
    for m in tl.static_range(K - 1):
        step = start - (K - 1) + m
        flag = flag_at(flags, row, step, L, L, REVERSE, FLAGS, True)
        at = (row * L + position_of(step, L, REVERSE)) * D
        value = tl.load(x + at + channels, mask=inside & ((flag & 1) != 0), other=0.0).to(tl.float32)
        if TAIL:
            place = position_of(step + (K - 1), K - 1, REVERSE)
            at = (row * (K - 1) + place) * D
            before = tl.load(tail + at + channels, mask=inside & (step < 0), other=0.0)
            value += before.to(tl.float32)
        if RESETS:
            window = cut_off(window, flag)
        window = pushed(window, value)
    return window


@triton.jit
def convolved(taps, base, value, window):
    """bias + sum of taps over the value and the window before it."""
    total = base + taps[0] * value
    for m in tl.static_range(len(window)):
        total += taps[m + 1] * window[m]
    return total


@triton.jit
def part_of(
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
