"""The launches of the GPU kernels of `ssd`: what each is given, what it returns, and in how many programs it runs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels import triton_call as calls
from dimba_kernels.ssd import gpu_tiles
from dimba_kernels.ssd.gpu_decay_kernels import chunk_decays, decay_gradients
from dimba_kernels.ssd.gpu_gradient_kernels import chunk_gradients
from dimba_kernels.ssd.gpu_output_kernels import chunk_outputs
from dimba_kernels.ssd.gpu_state_kernels import chunk_states
from dimba_kernels.triton_call import triton_call

FORWARD, REVERSE, BOTH = 0, 1, 2


class Inputs(NamedTuple):
    """What the kernels read. Where a pair of scans runs, all but mask lead with an axis of 2."""

    x: jax.Array  # b l h p
    dt: jax.Array  # b h l, float32
    a: jax.Array  # ways b h l, float32: the logarithm of each position's decay
    B: jax.Array  # b l g n
    C: jax.Array  # b l g n
    D: jax.Array | None  # h, float32
    h0: jax.Array | None  # ways b h p n, float32
    mask: jax.Array | None  # b l, int8


class Static(NamedTuple):
    direction: int  # FORWARD, REVERSE, or BOTH: the first of two forward and the second in reverse
    shared: bool  # x, dt, B and C lead with no axis of directions
    segments: bool


class Part(NamedTuple):
    """So many heads, and what the kernels call `launch`: from which on, and more (see `chunk_states`)."""

    heads: int
    launch: jax.Array


class Decays(NamedTuple):
    """See `chunk_decays`."""

    sums: jax.Array
    enter: jax.Array
    leave: jax.Array
    other: jax.Array
    counts: jax.Array
    scales: jax.Array


class Gradients(NamedTuple):
    """See `chunk_gradients`."""

    dx: jax.Array
    dB: jax.Array
    dC: jax.Array
    ddt: jax.Array
    dD: jax.Array
    crossing: jax.Array
    entering: jax.Array
    leaving: jax.Array
    through: jax.Array


class Plan:
    """Sizes, tiles and launches for given inputs."""

    def __init__(self, static: Static, inputs: Inputs) -> None:
        self.static, self.inputs = static, inputs
        self.b, self.l, self.h, self.p = inputs.x.shape[-4:]
        self.g, self.n = inputs.B.shape[-2:]
        self.ways = 2 if static.direction == BOTH else 1
        self.lines = self.b if static.shared else 2 * self.b
        self.wide = wide = inputs.x.dtype == jnp.float32
        self._precision = (
            "tf32x3" if wide else "ieee" if calls.interpreting() else "tf32"
        )  # no matter to bfloat16 on a GPU
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
        heads, each, parts = self.tiles.heads, self.tiles.gradient_heads, self.tiles.gradient_parts
        if self.h // self.g % heads or self.h // self.g % each or self.h % (parts * each):
            raise ValueError(
                f"ssd: tiles of heads={heads}, gradient_heads={each} and gradient_parts={parts} do not "
                f"divide {self.h} heads in {self.g} groups; choose divisors of a group's heads, and parts of blocks"
            )
        self._sizes = dict(BATCH=self.b, L=self.l, H=self.h, P=self.p, G=self.g, N=self.n)
        self._flags = dict(DIRECTION=static.direction, SHARED=static.shared, HAS_MASK=inputs.mask is not None)

    def chunks(self, Q: int) -> int:
        return -(-self.l // Q)

    def whole(self) -> Part:
        """All heads, forward."""
        return Part(self.h, jnp.zeros(3, jnp.int32))

    def part(self, number: int, end: jax.Array | None) -> Part:
        """Those whose gradients are taken together. end: the cotangent of h_last; None for zeros."""
        heads, walks = self.h // self.tiles.gradient_parts, self.ways * self.b
        # the last states of the second walk are h0's gradients; without h0 none are kept
        last_from = 2 * walks if self.inputs.h0 is None else walks
        return Part(heads, jnp.array([number * heads, end is not None, last_from], jnp.int32))

    def _or_empty(self, value: jax.Array | None, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
        return jnp.zeros(1, dtype) if value is None else value

    def decays(self, part: Part, Q: int, gradients: bool) -> Decays:
        """For chunks of Q positions."""
        chunks, inputs = self.chunks(Q), self.inputs
        along = _float32(self.ways, self.b, part.heads, chunks * Q)
        counts = jax.ShapeDtypeStruct(along.shape if self.resets else (1,), jnp.int32)
        outputs = triton_call(
            chunk_decays,
            [inputs.a, inputs.dt, part.launch],
            [along, along, along, along, counts, _float32(*along.shape[:3], chunks)],
            grid=(self.ways * self.b * part.heads, -(-chunks // _rows(chunks))),
            constants=dict(
                L=self.l, H=self.h, LOCAL=part.heads, WAYS=self.ways, DIRECTION=self.static.direction,
                SHARED=self.static.shared,
                GRADIENTS=gradients, RESETS=self.resets, Q=Q, CHUNKS=chunks, ROWS=_rows(chunks),
            ),
        )  # fmt: skip
        return Decays(*outputs)

    def states(self, part: Part, decays: Decays) -> tuple[jax.Array, jax.Array]:
        """The states that enter the chunks of the outputs, and the last ones."""
        return self._walks(part, self.tiles.states, self.tiles.chunk, decays, None, None)

    def gradient_states(
        self, part: Part, decays: Decays, dy: jax.Array, end: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The same for the chunks of the gradients, and beside them the states' gradients. The last ones are then the
        gradients of h0, if there is one.

        Args:
            dy, end: the cotangents of y and h_last; None for zeros.
        """
        tiles = self.tiles
        return self._walks(part, tiles.gradient_states, tiles.gradient_chunk, decays, dy, end)

    def _walks(
        self,
        part: Part,
        walk: gpu_tiles.Walk,
        Q: int,
        decays: Decays,
        dy: jax.Array | None,
        end: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        chunks, walks, inputs = self.chunks(Q), 1 if dy is None else 2, self.inputs
        b, heads, p, n = self.b, part.heads, self.p, self.n
        keeps_last = dy is None or inputs.h0 is not None
        BN, BP = gpu_tiles.block(walk.n), gpu_tiles.block(walk.p)
        states, last = triton_call(
            chunk_states,
            [
                inputs.x, inputs.x if dy is None else dy, inputs.B, inputs.C, self._or_empty(inputs.mask, jnp.int8),
                decays.leave, decays.enter, decays.scales,
                self._or_empty(inputs.h0), self._or_empty(end), part.launch,
            ],
            [
                jax.ShapeDtypeStruct((walks, self.ways, b, chunks, heads, n, p), inputs.x.dtype),
                _float32(self.ways, b, heads, p, n) if keeps_last else _float32(1),
            ],
            grid=(-(-n // BN) * -(-p // BP), heads, walks * self.ways * b),
            constants=self._sizes | self._flags | dict(
                WAYS=self.ways, HAS_START=inputs.h0 is not None, WALKS=walks, Q=Q, CHUNKS=chunks, BN=BN, BP=BP,
                PRECISION=self._precision,
            ),
            warps=walk.warps,
            stages=walk.stages,
        )  # fmt: skip
        return states, last

    def outputs(self, decays: Decays, states: jax.Array) -> jax.Array:
        """y."""
        Q, inputs, cut = self.tiles.chunk, self.inputs, self.tiles.outputs
        (y,) = triton_call(
            chunk_outputs,
            [
                inputs.x, inputs.B, inputs.C, self._or_empty(inputs.D), self._or_empty(inputs.mask, jnp.int8),
                decays.sums, decays.other, decays.enter, decays.counts, states,
            ],
            [jax.ShapeDtypeStruct(inputs.x.shape, inputs.x.dtype)],
            grid=(self.h // self.tiles.heads, self.chunks(Q), self.lines),
            constants=self._sizes | self._flags | dict(
                HAS_D=inputs.D is not None, RESETS=self.resets, Q=Q, CHUNKS=self.chunks(Q), HEADS=self.tiles.heads,
                BN=gpu_tiles.block(self.n), BP=gpu_tiles.block(self.p), PRECISION=self._precision,
            ),
            warps=cut.warps,
            stages=cut.stages,
        )  # fmt: skip
        return y

    def gradients(
        self, part: Part, decays: Decays, dy: jax.Array, states: jax.Array, before: Gradients | None
    ) -> Gradients:
        """Of the part; its dx, dB and dC are written into what was found `before`."""
        tiles, inputs, Q = self.tiles, self.inputs, self.tiles.gradient_chunk
        chunks, heads, each = self.chunks(Q), part.heads, tiles.gradient_heads
        lead = () if self.static.shared else (2,)
        along, ways = _float32(*lead, self.b, heads, chunks * Q), _float32(self.ways, self.b, heads, chunks * Q)
        shares = (heads if self.g == 1 else self.h // self.g) // each
        of_groups = shares, self.l, self.g, self.n  # of dB and dC
        # rounded as the sum of them will be; but not once more for every part that adds to them
        dtype = jnp.float32 if self.g == 1 and tiles.gradient_parts > 2 else inputs.x.dtype
        whole = [
            jax.ShapeDtypeStruct(inputs.x.shape, inputs.x.dtype),
            jax.ShapeDtypeStruct((*lead, self.b, 2, *of_groups), dtype),
            jax.ShapeDtypeStruct((*lead, self.b, *of_groups), dtype),
        ]
        outputs = [
            *whole, along, along if inputs.D is not None else _float32(1),
            ways, ways, ways, _float32(self.ways, self.b, heads, chunks),
        ]  # fmt: skip
        arguments = [
            inputs.x, dy, inputs.B, inputs.C, self._or_empty(inputs.D), self._or_empty(inputs.mask, jnp.int8),
            inputs.dt, decays.sums, decays.enter, decays.other, decays.counts, decays.scales, part.launch, states,
        ]  # fmt: skip
        if before is None:
            arguments += [jnp.zeros(1, output.dtype) for output in whole]
        found = triton_call(
            chunk_gradients,
            arguments,
            outputs,
            grid=(3 * heads // each, chunks, self.lines),
            constants=self._sizes | self._flags | dict(
                HAS_D=inputs.D is not None, RESETS=self.resets, Q=Q, CHUNKS=chunks, HEADS=each, LOCAL=heads,
                SHARES=shares, BN=gpu_tiles.block(self.n), BP=gpu_tiles.block(self.p), X_STAGES=tiles.x_stages,
                B_STAGES=tiles.b_stages, C_STAGES=tiles.c_stages, EXACT=self.wide, PRECISION=self._precision,
            ),
            warps=tiles.gradient_warps,
            unfinished=() if before is None else before[: len(whole)],
        )  # fmt: skip
        return Gradients(*found)

    def decay_gradients(self, part: Part, found: Gradients) -> jax.Array:
        """Of `a`."""
        Q, a = self.tiles.gradient_chunk, self.inputs.a
        chunks = self.chunks(Q)
        (da,) = triton_call(
            decay_gradients,
            [a, part.launch, found.crossing, found.entering, found.leaving, found.through],
            [_float32(self.ways, self.b, part.heads, self.l)],
            grid=(self.ways * self.b * part.heads, -(-chunks // _rows(chunks))),
            constants=dict(
                L=self.l, H=self.h, LOCAL=part.heads, WAYS=self.ways, DIRECTION=self.static.direction,
                EXACT=self.wide, Q=Q, CHUNKS=chunks, ROWS=_rows(chunks),
            ),
        )  # fmt: skip
        return da


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _rows(chunks: int) -> int:
    """Chunks that one program of the position-wise kernels takes."""
    return min(16, 1 << (chunks - 1).bit_length())
