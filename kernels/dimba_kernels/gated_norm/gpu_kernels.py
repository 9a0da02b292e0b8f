"""Triton kernels of the gated norm: a program holds one row of one group of one scan in registers.

Shared parameters: y and its gradient (R, ROWS, GROUPS, WIDTH); z, the result and their gradients
(ROWS, R, GROUPS, WIDTH); scale (R, GROUPS, WIDTH). BLOCK is WIDTH, rounded up to a power of two. Program axis 1 is
the part, a group of a scan.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _places(row, ROWS: tl.constexpr, R: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Where the part of a row begins: in y, and in z."""
    part = tl.program_id(1)
    scan, group = part // GROUPS, part % GROUPS
    in_y = ((scan * ROWS + row).to(tl.int64) * GROUPS + group) * WIDTH
    in_z = (row.to(tl.int64) * (R * GROUPS) + part) * WIDTH
    return in_y, in_z


@triton.jit
def _gate(z):
    """sigmoid(z), and silu(z)."""
    open_ = 1.0 / (1.0 + tl.exp2(-z * _LOG2E))
    return open_, z * open_


@triton.jit
def forward(
    y, z, scale, out,
    ROWS: tl.constexpr, R: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    EPSILON: tl.constexpr,
):  # fmt: skip
    in_y, in_z = _places(tl.program_id(0), ROWS, R, GROUPS, WIDTH)
    features = tl.arange(0, BLOCK)
    inside = features < WIDTH
    _, gate = _gate(tl.load(z + in_z + features, mask=inside, other=0.0).to(tl.float32))
    gated = tl.load(y + in_y + features, mask=inside, other=0.0).to(tl.float32) * gate
    inverse = 1.0 / tl.sqrt(tl.sum(gated * gated, axis=0) / WIDTH + EPSILON)
    factors = tl.load(scale + tl.program_id(1) * WIDTH + features, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + in_z + features, (gated * inverse * factors).to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    y, z, scale, dout, dy, dz, partials,
    ROWS: tl.constexpr, R: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    EPSILON: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Every PROGRAMS-th row. `partials` (PROGRAMS, R, GROUPS, WIDTH) are its sums of the gradient of `scale`."""
    first = tl.program_id(0)
    features = tl.arange(0, BLOCK)
    part = tl.program_id(1) * WIDTH + features
    factors = tl.load(scale + part, mask=features < WIDTH, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range((ROWS + PROGRAMS - 1) // PROGRAMS):
        row = first + turn * PROGRAMS
        inside = (features < WIDTH) & (row < ROWS)
        in_y, in_z = _places(row, ROWS, R, GROUPS, WIDTH)
        value = tl.load(y + in_y + features, mask=inside, other=0.0).to(tl.float32)
        argument = tl.load(z + in_z + features, mask=inside, other=0.0).to(tl.float32)
        cotangent = tl.load(dout + in_z + features, mask=inside, other=0.0).to(tl.float32)
        open_, gate = _gate(argument)
        gated = value * gate
        inverse = 1.0 / tl.sqrt(tl.sum(gated * gated, axis=0) / WIDTH + EPSILON)
        normed = gated * inverse
        total += tl.where(inside, cotangent * normed, 0.0)  # with no epsilon a row that is not there is NaN
        into = cotangent * factors
        dgated = inverse * (into - normed * (tl.sum(into * normed, axis=0) / WIDTH))
        tl.store(dy + in_y + features, (dgated * gate).to(dy.dtype.element_ty), mask=inside)
        dargument = dgated * value * (open_ + gate * (1.0 - open_))
        tl.store(dz + in_z + features, dargument.to(dz.dtype.element_ty), mask=inside)
    tl.store(partials + first * (R * GROUPS * WIDTH) + part, total, mask=features < WIDTH)
