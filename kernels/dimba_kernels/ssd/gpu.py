"""`ssd` on a GPU: Triton kernels in chunks, forward and backward.

Three launches forward: the decays of each position's chunk, the states entering the chunks, and y. Backward they
are four: decays, states and the states' gradients, all other gradients, the decays' own gradient. Nothing but the
inputs is kept for the backward pass. What lies between the arguments and the kernels (dt A, masks, resets) is left
to XLA and its automatic differentiation: it concerns small arrays only.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import resets
from dimba_kernels.ssd import gpu_tiles
from dimba_kernels.ssd.gpu_decay_kernels import chunk_decays, decay_gradients
from dimba_kernels.ssd.gpu_gradient_kernels import chunk_gradients
from dimba_kernels.ssd.gpu_output_kernels import chunk_outputs
from dimba_kernels.ssd.gpu_state_kernels import chunk_states
from dimba_kernels.triton_call import interpreting, triton_call

MOST_STATES = 256
WIDEST = 64  # of a head that a program takes; wider ones are cut into several that share dt, A, B and C
FORWARD, REVERSE, BOTH = 0, 1, 2


class _Inputs(NamedTuple):
    """What the kernels read. Where a pair of scans runs, all but mask lead with an axis of 2."""

    x: jax.Array  # b l h p
    dt: jax.Array  # b h l, float32
    a: jax.Array  # ways b h l, float32: the logarithm of each position's decay
    B: jax.Array  # b l g n
    C: jax.Array  # b l g n
    D: jax.Array | None  # h, float32
    h0: jax.Array | None  # ways b h p n, float32
    mask: jax.Array | None  # b l, int8


class _Static(NamedTuple):
    direction: int  # FORWARD, REVERSE, or BOTH: the first of two forward and the second in reverse
    shared: bool  # x, dt, B and C lead with no axis of directions
    segments: bool


def ssd(x, dt, A, B, C, *, D, h0, mask, segments, reverse: bool, chunk: int | None) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd`."""
    del chunk  # a matter of `gpu_tiles`
    static = _Static(REVERSE if reverse else FORWARD, True, segments is not None)
    y, h_last = _run(x, dt, A, B, C, D, None if h0 is None else h0[None], mask, segments, static)
    return y, h_last[0]


def ssd_bidirectional(x, dt, A, B, C, *, D, mask, segments, chunk: int | None) -> jax.Array:
    """See `dimba_kernels.ssd_bidirectional`."""
    del chunk
    return _run(x, dt, A, B, C, D, None, mask, segments, _Static(BOTH, True, segments is not None))[0]


def ssd_pair(x, dt, A, B, C, *, D, h0, mask, segments, chunk: int | None) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd_pair`: two scans in one launch per stage, the second of them in reverse."""
    del chunk
    return _run(x, dt, A, B, C, D, h0, mask, segments, _Static(BOTH, False, segments is not None))


def unsupported(x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, **rest: object) -> str | None:
    """Why the kernels cannot run these arguments; None if they can."""
    del dt, A, C, rest
    if 0 in (*x.shape, *B.shape):
        return "an axis is empty"
    if 4 * x.shape[-4] > 65535:  # rows of the grid: walks, directions and batch
        return f"{x.shape[-4]} rows are more than one launch takes"
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"x is {x.dtype}; the GPU kernels take float32 and bfloat16"
    if B.shape[-1] > MOST_STATES:
        return f"{B.shape[-1]} states per channel; the GPU kernels take up to {MOST_STATES}"
    return None


def slower_than_xla(x: jax.Array, **rest: object) -> bool:
    """float32: its gradients spill registers; 38 ms of 41 at b 16, l 1024, h 30, p 64, n 128 on an H200."""
    del rest
    return x.dtype == jnp.float32


def _run(x, dt, A, B, C, D, h0, mask, segments, static: _Static) -> tuple[jax.Array, jax.Array]:
    p = x.shape[-1]
    parts = -(-p // WIDEST)
    if parts > 1:
        # a wide head is several heads side by side
        if p % parts:
            more = -(-p // parts) * parts - p
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])
            h0 = None if h0 is None else jnp.pad(h0, [(0, 0)] * (h0.ndim - 2) + [(0, more), (0, 0)])
        x = x.reshape(*x.shape[:-2], x.shape[-2] * parts, -1)
        h0 = None if h0 is None else h0.reshape(*h0.shape[:-3], h0.shape[-3] * parts, -1, h0.shape[-1])
        dt, A = (jnp.repeat(value, parts, axis=-1) for value in (dt, A))
        D = None if D is None else jnp.repeat(D, parts, axis=-1)
    outputs: Any = _scan(static, _prepare(x, dt, A, B, C, D, h0, mask, segments, static))
    y, h_last = outputs
    if parts > 1:
        y = y.reshape(*y.shape[:-2], y.shape[-2] // parts, -1)[..., :p]
        h_last = h_last.reshape(*h_last.shape[:-3], h_last.shape[-3] // parts, -1, h_last.shape[-1])[..., :p, :]
    return y, h_last


def _prepare(x, dt, A, B, C, D, h0, mask, segments, static: _Static) -> _Inputs:
    dt = dt.astype(jnp.float32)
    if mask is not None:
        dt = jnp.where(mask[..., None], dt, 0)
    dt = dt.swapaxes(-1, -2)
    a = dt * A.astype(jnp.float32)[..., None, :, None]
    if static.shared:
        a = jnp.broadcast_to(a, (2 if static.direction == BOTH else 1, *a.shape))
    if segments is not None:
        ways = (False, True) if static.direction == BOTH else (static.direction == REVERSE,)
        cut = jnp.stack([resets(segments, reverse) for reverse in ways])
        a = jnp.where(cut[:, :, None, :], -jnp.inf, a)
    B, C = B.astype(x.dtype), C.astype(x.dtype)
    D, h0 = (None if value is None else value.astype(jnp.float32) for value in (D, h0))
    return _Inputs(x, dt, a, B, C, D, h0, None if mask is None else mask.astype(jnp.int8))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(static: _Static, inputs: _Inputs) -> tuple[jax.Array, jax.Array]:
    plan = _Plan(static, inputs)
    Q = plan.tiles.chunk
    decays = plan.decays(inputs, Q, gradients=False)
    states, last = plan.states(inputs, Q, decays, None, None)
    (y,) = triton_call(
        chunk_outputs,
        [
            inputs.x, inputs.B, inputs.C, plan.or_empty(inputs.D), plan.or_empty(inputs.mask, jnp.int8),
            decays.sums, decays.other, decays.enter, decays.counts, states,
        ],
        [jax.ShapeDtypeStruct(inputs.x.shape, inputs.x.dtype)],
        grid=(plan.h // plan.tiles.heads, plan.chunks(Q), plan.lines),
        constants=plan.sizes | plan.flags | dict(
            HAS_D=inputs.D is not None, RESETS=plan.resets, Q=Q, CHUNKS=plan.chunks(Q), HEADS=plan.tiles.heads,
            BN=gpu_tiles.block(plan.n), BP=gpu_tiles.block(plan.p), PRECISION=plan.precision,
        ),
        warps=plan.tiles.outputs.warps,
        stages=plan.tiles.outputs.stages,
    )  # fmt: skip
    return y, last[0]


def _scan_forward(static: _Static, inputs: _Inputs) -> tuple[tuple[jax.Array, jax.Array], _Inputs]:
    return _scan(static, inputs), inputs


def _scan_backward(static: _Static, inputs: _Inputs, cotangents: tuple[jax.Array, jax.Array]) -> tuple[_Inputs]:
    dy, end = cotangents
    plan = _Plan(static, inputs)
    Q, chunks = plan.tiles.gradient_chunk, plan.chunks(plan.tiles.gradient_chunk)
    decays = plan.decays(inputs, Q, gradients=True)
    states, last = plan.states(inputs, Q, decays, dy, end)
    heads = plan.tiles.gradient_heads
    blocks = plan.h // plan.g // heads
    lead = () if static.shared else (2,)
    b, l, h = plan.b, plan.l, plan.h
    along = jax.ShapeDtypeStruct((*lead, b, h, chunks * Q), jnp.float32)
    along_ways = jax.ShapeDtypeStruct((plan.ways, b, h, chunks * Q), jnp.float32)
    per_chunk = jax.ShapeDtypeStruct((plan.ways, b, h, chunks), jnp.float32)
    parts = (blocks, l, plan.g, plan.n)  # of dB and dC, to be summed
    dx, ddt, dD, crossing, entering, leaving, through, dB, dC = triton_call(
        chunk_gradients,
        [
            inputs.x, dy, inputs.B, inputs.C, plan.or_empty(inputs.D), plan.or_empty(inputs.mask, jnp.int8),
            inputs.dt, decays.sums, decays.enter, decays.other, decays.counts, decays.scales, states,
        ],
        [
            jax.ShapeDtypeStruct(inputs.x.shape, inputs.x.dtype),
            along, along if inputs.D is not None else jax.ShapeDtypeStruct((1,), jnp.float32),
            along_ways, along_ways, along_ways, per_chunk,
            # rounded no worse than the sum of them will be
            jax.ShapeDtypeStruct((*lead, b, 2, *parts), inputs.x.dtype),
            jax.ShapeDtypeStruct((*lead, b, *parts), inputs.x.dtype),
        ],
        grid=(3 * plan.h // heads, chunks, plan.lines),
        constants=plan.sizes | plan.flags | dict(
            HAS_D=inputs.D is not None, RESETS=plan.resets, Q=Q, CHUNKS=chunks, HEADS=heads,
            BN=gpu_tiles.block(plan.n), BP=gpu_tiles.block(plan.p), X_STAGES=plan.tiles.x_stages,
            B_STAGES=plan.tiles.b_stages, C_STAGES=plan.tiles.c_stages, EXACT=plan.wide, PRECISION=plan.precision,
        ),
        warps=plan.tiles.gradient_warps,
    )  # fmt: skip
    rows = _rows(chunks)
    (da,) = triton_call(
        decay_gradients,
        [inputs.a, crossing, entering, leaving, through],
        [jax.ShapeDtypeStruct(inputs.a.shape, jnp.float32)],
        grid=(plan.ways * b * h, -(-chunks // rows)),
        constants=dict(L=l, WAYS=plan.ways, DIRECTION=static.direction, EXACT=plan.wide, Q=Q, CHUNKS=chunks, ROWS=rows),
    )
    dB, dC = jnp.sum(dB, axis=(-5, -4), dtype=jnp.float32), jnp.sum(dC, axis=-4, dtype=jnp.float32)
    dB, dC = dB.astype(inputs.x.dtype), dC.astype(inputs.x.dtype)
    dD = None if inputs.D is None else jnp.sum(dD, axis=(-3, -1))
    dh0 = None if inputs.h0 is None else last[1]
    return (_Inputs(dx, ddt[..., :l], da, dB, dC, dD, dh0, None),)


_scan.defvjp(_scan_forward, _scan_backward)


class _Decays(NamedTuple):
    """See `chunk_decays`."""

    sums: jax.Array
    enter: jax.Array
    leave: jax.Array
    other: jax.Array
    counts: jax.Array
    scales: jax.Array


class _Plan:
    """Sizes, tiles and the launches that both passes share."""

    def __init__(self, static: _Static, inputs: _Inputs) -> None:
        self.static = static
        self.b, self.l, self.h, self.p = inputs.x.shape[-4:]
        self.g, self.n = inputs.B.shape[-2:]
        self.ways = 2 if static.direction == BOTH else 1
        self.lines = self.b if static.shared else 2 * self.b
        self.wide = wide = inputs.x.dtype == jnp.float32
        self.precision = "tf32x3" if wide else "ieee" if interpreting() else "tf32"  # no matter to bfloat16 on a GPU
        # without resets a decay that ends all is e**-40 and costs sums their last digits, which bfloat16 lacks
        self.resets = wide or static.segments
        kind = jax.devices()[0].device_kind if jax.default_backend() == "gpu" else "NVIDIA H200"
        self.tiles = gpu_tiles.tiles(
            kind,
            b=self.b,
            l=self.l,
            h=self.h,
            g=self.g,
            p=self.p,
            n=self.n,
            ways=self.ways,
            both=static.shared and self.ways == 2,
            wide=wide,
        )
        self.sizes = dict(BATCH=self.b, L=self.l, H=self.h, P=self.p, G=self.g, N=self.n)
        self.flags = dict(DIRECTION=static.direction, SHARED=static.shared, HAS_MASK=inputs.mask is not None)

    def chunks(self, Q: int) -> int:
        return -(-self.l // Q)

    def or_empty(self, value: jax.Array | None, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
        return jnp.zeros(1, dtype) if value is None else value

    def decays(self, inputs: _Inputs, Q: int, gradients: bool) -> _Decays:
        chunks = self.chunks(Q)
        rows = _rows(chunks)
        along = jax.ShapeDtypeStruct((self.ways, self.b, self.h, chunks * Q), jnp.float32)
        counts = jax.ShapeDtypeStruct(along.shape if self.resets else (1,), jnp.int32)
        outputs = triton_call(
            chunk_decays,
            [inputs.a, inputs.dt],
            [along, along, along, along, counts, jax.ShapeDtypeStruct((*along.shape[:3], chunks), jnp.float32)],
            grid=(self.ways * self.b * self.h, -(-chunks // rows)),
            constants=dict(
                L=self.l, WAYS=self.ways, DIRECTION=self.static.direction, SHARED=self.static.shared,
                GRADIENTS=gradients, RESETS=self.resets, Q=Q, CHUNKS=chunks, ROWS=rows,
            ),
        )  # fmt: skip
        return _Decays(*outputs)

    def states(
        self, inputs: _Inputs, Q: int, decays: _Decays, dy: jax.Array | None, end: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The entering states and the last; with dy and end, the cotangents of the outputs, also their gradients."""
        chunks, walks = self.chunks(Q), 1 if dy is None else 2
        b, h, p, n = self.b, self.h, self.p, self.n
        walk = self.tiles.states if dy is None else self.tiles.gradient_states
        BN, BP = gpu_tiles.block(walk.n), gpu_tiles.block(walk.p)
        nothing = self.or_empty(None)
        states, last = triton_call(
            chunk_states,
            [
                inputs.x, inputs.x if dy is None else dy, inputs.B, inputs.C, self.or_empty(inputs.mask, jnp.int8),
                decays.leave, decays.enter, decays.scales,
                self.or_empty(inputs.h0), nothing if end is None else end,
            ],
            [
                jax.ShapeDtypeStruct((walks, self.ways, b, chunks, h, n, p), inputs.x.dtype),
                jax.ShapeDtypeStruct((walks, self.ways, b, h, p, n), jnp.float32),
            ],
            grid=(-(-n // BN) * -(-p // BP), h, walks * self.ways * b),
            constants=self.sizes | self.flags | dict(
                WAYS=self.ways, HAS_START=inputs.h0 is not None, WALKS=walks, Q=Q, CHUNKS=chunks, BN=BN, BP=BP,
                PRECISION=self.precision,
            ),
            warps=walk.warps,
            stages=walk.stages,
        )  # fmt: skip
        return states, last


def _rows(chunks: int) -> int:
    """Chunks that one program of the position-wise kernels takes."""
    return min(16, 1 << math.ceil(math.log2(chunks)))
