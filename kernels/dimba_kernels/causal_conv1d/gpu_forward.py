"""Triton kernels of the causal convolution, forward: each thread walks along the sequence with a few channels.

The window of past inputs stays in registers as float32, so every element is read once and
converted once. "Step" counts positions in the direction of the scan; with REVERSE step s is position L-1-s.

Shared parameters: x, y and their gradients (B, L, D); w (D, K); tail (B, K-1, D) in order of position; flags (B, L)
int8, by position: 1 = valid, 2 = the window does not reach past this step to those before it.
COUNT programs share a sequence, SPAN steps each, a multiple of UNROLL; the halo between two is read twice. EVEN: there
is nothing but whole spans and whole groups of rows, so that the walk needs no bounds.
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
)


@triton.jit
def _walk_forward(
    x, w, bias, tail, flags, y, width, begin, SCAN: tl.constexpr,
    B: tl.constexpr, L: tl.constexpr, D: tl.constexpr, K: tl.constexpr, COUNT: tl.constexpr, SPAN: tl.constexpr,
    CHANNELS: tl.constexpr, UNROLL: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BIAS: tl.constexpr, TAIL: tl.constexpr, FLAGS: tl.constexpr, RESETS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """y of SPAN steps of one sequence; it has `width` of the channels from `begin` on, at SCAN of its leading axis."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels_there(channels, D, CHANNELS)
    row = (tl.program_id(1) // COUNT).to(tl.int64)
    start = (tl.program_id(1) % COUNT) * SPAN
    end = tl.minimum(start + SPAN, L)
    taps = taps_of(w, channels, inside, K)
    base = tl.zeros([CHANNELS], tl.float32)
    if BIAS:
        base += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    window = window_before(x, tail, flags, row, start, channels, inside, L, D, K, REVERSE, TAIL, FLAGS, RESETS)
    for turn in range(SPAN // UNROLL):
        first = start + turn * UNROLL
        # all loads of the turn first, so that they are in flight together
        ahead = ()
        for i in tl.static_range(UNROLL):
            step = first + i
            flag = flag_at(flags, row, step, end, L, REVERSE, FLAGS, not EVEN)
            at = (row * L + position_of(step, L, REVERSE)) * D
            ahead = ahead + ((flag, tl.load(x + at + channels, mask=inside & ((flag & 1) != 0), other=0.0)),)
        for i in tl.static_range(UNROLL):
            step = first + i
            flag = ahead[i][0]
            value = ahead[i][1].to(tl.float32)
            if RESETS:
                window = cut_off(window, flag)
            out = convolved(taps, base, value, window)
            window = pushed(window, value)
            if SILU:
                out = out / (1.0 + tl.exp2(-LOG2E * out))
            if FLAGS:
                out = tl.where((flag & 1) != 0, out, 0.0)
            at = ((SCAN * B + row) * L + position_of(step, L, REVERSE)) * width - begin
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
    y, width, begin = part_of(y_0, y_1, y_2, SIZE_0, SIZE_1, SIZE_2, CHANNELS)
    _walk_forward(
        x, w, bias, tail, flags, y, width, begin, 1 if REVERSE else 0, B, L, D, K, COUNT, SPAN, CHANNELS, UNROLL,
        SILU, REVERSE, BIAS, TAIL, FLAGS, RESETS, EVEN,
    )  # fmt: skip
