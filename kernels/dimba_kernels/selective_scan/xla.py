"""`selective_scan` in chunks: a `lax.scan` carries the state, and the states inside a chunk never outlive it.

Written out they would be n times the size of the input. Each chunk is a rematerialised step, so that the backward
pass keeps only the states at the chunks' borders. Two forms of a chunk, of equal result:

- "sequential": its positions one after another in straight-line code, which XLA fuses into few passes over the state;
- "associative": `lax.associative_scan` over its positions, 2 log2(chunk) passes over chunk times the state.

Inside this file the state is (b, n, d): the long axis last, for vector units and coalesced loads.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import resets, unmasked

Form = Literal["sequential", "associative"]


class _Inputs(NamedTuple):
    """Positions of a sequence or of a chunk; z and reset may be None."""

    u: jax.Array  # b l d
    dt: jax.Array  # b l d, float32, zero where masked
    B: jax.Array  # b l n
    C: jax.Array  # b l n
    z: jax.Array | None  # b l d
    reset: jax.Array | None  # b l 1 bool: does the state start from zero here?


def plan(b: int, l: int, d: int, n: int) -> tuple[int, Form]:
    """The chunk and the form of a shape; the one place to change when a new machine is measured.

    Today one answer for all. Forward and backward on 2 CPU cores, float32: at b 64, l 24, d 128, n 8 by eights 4.3 ms,
    by ones 5.5 ms, all 24 at once 26 ms; at b 1, l 2048, d 128, n 16 by eights 116 ms, associative by sixteens 176 ms
    and by 64s 508 ms (the last three on a busy machine). Not measured on a GPU or TPU.
    """
    del b, d, n
    return min(l, 8), "sequential"


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    z: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    dt_bias: jax.Array | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int | None,
    form: Form | None = None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.selective_scan`; `form` None lets `plan` choose."""
    u, dt, B, C = unmasked(mask, u, dt, B, C)
    if z is not None:
        (z,) = unmasked(mask, z)
    b, l, d = u.shape
    planned_chunk, planned_form = plan(b, l, d, A.shape[1])
    size = planned_chunk if chunk is None else min(l, chunk)
    wide = jnp.promote_types(u.dtype, jnp.float32)
    dt = dt.astype(wide)
    if dt_bias is not None:
        dt = dt + dt_bias.astype(wide)[None, None]
    if dt_softplus:
        dt = jax.nn.softplus(dt)
    if mask is not None:
        dt = jnp.where(mask[..., None], dt, 0)
    A = A.astype(wide).T
    state = jnp.zeros((b, *A.shape), wide) if h0 is None else h0.astype(wide).transpose(0, 2, 1)

    inputs = _Inputs(u, dt, B, C, z, None if segments is None else resets(segments, reverse)[..., None])
    scan_chunk = jax.checkpoint(partial(_chunk, form=form or planned_form, reverse=reverse), prevent_cse=l <= size)
    if l <= size:
        state, y = scan_chunk(state, inputs, A, D)
    else:
        state, y = jax.lax.scan(
            lambda state, inputs: scan_chunk(state, inputs, A, D), state, _cut(inputs, size), reverse=reverse
        )
        y = jnp.moveaxis(y, 0, 1).reshape(b, -1, d)[:, :l]
    if mask is not None:
        y = jnp.where(mask[..., None], y, 0)
    return y, state.transpose(0, 2, 1)


def _cut(inputs: _Inputs, size: int) -> _Inputs:
    """(b, l, ...) -> (chunks, b, size, ...), padded on the right with positions that leave the state alone (dt = 0)."""

    def cut(value: jax.Array) -> jax.Array:
        b, l, width = value.shape
        count = -(-l // size)
        if count * size != l:
            value = jnp.pad(value, [(0, 0), (0, count * size - l), (0, 0)])
        return jnp.moveaxis(value.reshape(b, count, size, width), 1, 0)

    return jax.tree.map(cut, inputs)


def _chunk(
    state: jax.Array, inputs: _Inputs, A: jax.Array, D: jax.Array | None, *, form: Form, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """state (b n d), A (n d) -> the next state, and y (b l d) with skip and gate."""
    run = _sequential if form == "sequential" else _associative
    state, y = run(state, inputs, A, reverse)
    if D is not None:
        y = y + D.astype(y.dtype)[None, None] * inputs.u.astype(y.dtype)
    if inputs.z is not None:
        y = y * jax.nn.silu(inputs.z.astype(y.dtype))
    return state, y.astype(inputs.u.dtype)


def _sequential(state: jax.Array, inputs: _Inputs, A: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    u, dt, B, C, _, reset = inputs
    positions = range(u.shape[1])
    y = {}
    for i in reversed(positions) if reverse else positions:
        decay = jnp.exp(dt[:, i, None, :] * A[None])
        if reset is not None:
            decay = jnp.where(reset[:, i, :, None], 0, decay)
        state = decay * state + (dt[:, i] * u[:, i])[:, None, :] * B[:, i, :, None]
        y[i] = jnp.sum(C[:, i, :, None] * state, axis=1)
    return state, jnp.stack([y[i] for i in positions], axis=1)


def _associative(state: jax.Array, inputs: _Inputs, A: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    u, dt, B, C, _, reset = inputs
    decay = jnp.exp(dt[:, :, None, :] * A[None, None])
    if reset is not None:
        decay = jnp.where(reset[..., None], 0, decay)
    added = (dt * u)[:, :, None, :] * B[..., None]

    def join(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return second[0] * first[0], second[0] * first[1] + second[1]

    decay, added = jax.lax.associative_scan(join, (decay, added), axis=1, reverse=reverse)
    states = decay * state[:, None] + added
    return states[:, 0 if reverse else -1], jnp.sum(C[..., None] * states, axis=2)
