"""Triton kernels of add and norm: a program takes positions of one row of the batch, each whole, in registers.

Shared parameters: h, branch, total, out and their gradients (ROWS, LENGTH, WIDTH); weight (WIDTH); scale, shift and
gate: WIDTH for each row, SCALE_STEP, SHIFT_STEP and GATE_STEP apart (0: the same for all rows). BLOCK is WIDTH, rounded
up to a power of two. Program axis 1 is the row.
"""

import triton
import triton.language as tl


@triton.jit
def _row_of(pointer, STEP: tl.constexpr, WIDTH: tl.constexpr, features):
    """What modulates this program's row."""
    return tl.load(pointer + tl.program_id(1) * STEP + features, mask=features < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def _inverse(total, WIDTH: tl.constexpr, EPSILON: tl.constexpr):
    return 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / WIDTH + EPSILON)


@triton.jit
def norm_forward(
    h, weight, scale, shift, out,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr, EPSILON: tl.constexpr,
    SCALE_STEP: tl.constexpr, SHIFT_STEP: tl.constexpr,
):  # fmt: skip
    """TURNS positions that follow one another."""
    features = tl.arange(0, BLOCK)
    factors = _row_of(weight, 0, WIDTH, features) * (1.0 + _row_of(scale, SCALE_STEP, WIDTH, features))
    offsets = _row_of(shift, SHIFT_STEP, WIDTH, features)
    for turn in tl.static_range(TURNS):
        position = tl.program_id(0) * TURNS + turn
        inside = (features < WIDTH) & (position < LENGTH)
        at = (tl.program_id(1).to(tl.int64) * LENGTH + position) * WIDTH + features
        total = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
        normed = total * _inverse(total, WIDTH, EPSILON) * factors + offsets
        tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_forward(
    h, weight, scale, shift, branch, gate, total, out,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr, EPSILON: tl.constexpr,
    SCALE_STEP: tl.constexpr, SHIFT_STEP: tl.constexpr, GATE_STEP: tl.constexpr,
):  # fmt: skip
    """TURNS positions that follow one another."""
    features = tl.arange(0, BLOCK)
    factors = _row_of(weight, 0, WIDTH, features) * (1.0 + _row_of(scale, SCALE_STEP, WIDTH, features))
    offsets = _row_of(shift, SHIFT_STEP, WIDTH, features)
    gates = _row_of(gate, GATE_STEP, WIDTH, features)
    for turn in tl.static_range(TURNS):
        position = tl.program_id(0) * TURNS + turn
        inside = (features < WIDTH) & (position < LENGTH)
        at = (tl.program_id(1).to(tl.int64) * LENGTH + position) * WIDTH + features
        added = gates * tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        sums = (tl.load(h + at, mask=inside, other=0.0).to(tl.float32) + added).to(total.dtype.element_ty)
        tl.store(total + at, sums, mask=inside)
        sums = sums.to(tl.float32)  # as the backward pass will read them
        normed = sums * _inverse(sums, WIDTH, EPSILON) * factors + offsets
        tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_gradient(total, cotangent, factors, WIDTH: tl.constexpr, EPSILON: tl.constexpr):
    """The normed features before their factors, and the gradient of what was normed."""
    inverse = _inverse(total, WIDTH, EPSILON)
    normed = total * inverse
    into = cotangent * factors
    return normed, inverse * (into - normed * (tl.sum(into * normed, axis=0) / WIDTH))


@triton.jit
def norm_backward(
    total, weight, scale, dtotal, dout, dh, partials,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr, EPSILON: tl.constexpr,
    SCALE_STEP: tl.constexpr,
):  # fmt: skip
    """Every PROGRAMS-th position. `partials` (ROWS, PROGRAMS, 2, WIDTH): its sums of dout * normed, and of dout."""
    features = tl.arange(0, BLOCK)
    factors = _row_of(weight, 0, WIDTH, features) * (1.0 + _row_of(scale, SCALE_STEP, WIDTH, features))
    products, sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for turn in range((LENGTH + PROGRAMS - 1) // PROGRAMS):
        position = tl.program_id(0) + turn * PROGRAMS
        inside = (features < WIDTH) & (position < LENGTH)
        at = (tl.program_id(1).to(tl.int64) * LENGTH + position) * WIDTH + features
        value = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        cotangent = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
        stream = tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        normed, gradient = _norm_gradient(value, cotangent, factors, WIDTH, EPSILON)
        products += tl.where(inside, cotangent * normed, 0.0)  # with no epsilon a position that is not there is NaN
        sums += cotangent
        tl.store(dh + at, (stream + gradient).to(dh.dtype.element_ty), mask=inside)
    mine = partials + ((tl.program_id(1) * PROGRAMS + tl.program_id(0)) * 2) * WIDTH + features
    tl.store(mine, products, mask=features < WIDTH)
    tl.store(mine + WIDTH, sums, mask=features < WIDTH)


@triton.jit
def add_norm_backward(
    total, weight, scale, branch, gate, dtotal, dout, dh, dbranch, partials,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr, EPSILON: tl.constexpr,
    SCALE_STEP: tl.constexpr, GATE_STEP: tl.constexpr,
):  # fmt: skip
    """As `norm_backward`, of a total with a branch in it; the third partial sum is that of its gradient * branch."""
    features = tl.arange(0, BLOCK)
    factors = _row_of(weight, 0, WIDTH, features) * (1.0 + _row_of(scale, SCALE_STEP, WIDTH, features))
    gates = _row_of(gate, GATE_STEP, WIDTH, features)
    products, sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    dgate = tl.zeros([BLOCK], tl.float32)
    for turn in range((LENGTH + PROGRAMS - 1) // PROGRAMS):
        position = tl.program_id(0) + turn * PROGRAMS
        inside = (features < WIDTH) & (position < LENGTH)
        at = (tl.program_id(1).to(tl.int64) * LENGTH + position) * WIDTH + features
        value = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        cotangent = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
        stream = tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        added = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        normed, gradient = _norm_gradient(value, cotangent, factors, WIDTH, EPSILON)
        stream += gradient
        products += tl.where(inside, cotangent * normed, 0.0)  # with no epsilon a position that is not there is NaN
        sums += cotangent
        dgate += tl.where(inside, stream * added, 0.0)
        tl.store(dh + at, stream.to(dh.dtype.element_ty), mask=inside)
        tl.store(dbranch + at, (stream * gates).to(dbranch.dtype.element_ty), mask=inside)
    mine = partials + ((tl.program_id(1) * PROGRAMS + tl.program_id(0)) * 3) * WIDTH + features
    tl.store(mine, products, mask=features < WIDTH)
    tl.store(mine + WIDTH, sums, mask=features < WIDTH)
    tl.store(mine + 2 * WIDTH, dgate, mask=features < WIDTH)
