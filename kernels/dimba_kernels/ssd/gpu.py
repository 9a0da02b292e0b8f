"""`ssd` on a GPU: Triton kernels in chunks, forward and backward.

Three launches forward: the decays of each position's chunk, the states entering the chunks, and y. Backward they
are four: decays, states and the states' gradients, all other gradients, the decays' own gradient; large states are
taken a part of the heads at a time. Nothing but the inputs is kept for the backward pass. What lies between the
arguments and the kernels (dt A, masks, resets) is left to XLA and its automatic differentiation: it concerns small
arrays only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import resets
from dimba_kernels.ssd.gpu_launches import BOTH, FORWARD, REVERSE, Inputs, Plan, Static

MOST_STATES = 256
WIDEST = 64  # of a head that a program takes; wider ones are cut into several that share dt, A, B and C


def ssd(x, dt, A, B, C, *, D, h0, mask, segments, reverse: bool, chunk: int | None) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd`."""
    del chunk  # a matter of `gpu_tiles`
    static = Static(REVERSE if reverse else FORWARD, True, segments is not None)
    y, h_last = _run(x, dt, A, B, C, D, None if h0 is None else h0[None], mask, segments, static)
    return y, h_last[0]


def ssd_bidirectional(x, dt, A, B, C, *, D, mask, segments, chunk: int | None) -> jax.Array:
    """See `dimba_kernels.ssd_bidirectional`."""
    del chunk
    return _run(x, dt, A, B, C, D, None, mask, segments, Static(BOTH, True, segments is not None))[0]


def ssd_pair(x, dt, A, B, C, *, D, h0, mask, segments, chunk: int | None) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd_pair`: two scans in one launch per stage, the second of them in reverse."""
    del chunk
    return _run(x, dt, A, B, C, D, h0, mask, segments, Static(BOTH, False, segments is not None))


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


def _run(x, dt, A, B, C, D, h0, mask, segments, static: Static) -> tuple[jax.Array, jax.Array]:
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


def _prepare(x, dt, A, B, C, D, h0, mask, segments, static: Static) -> Inputs:
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
    return Inputs(x, dt, a, B, C, D, h0, None if mask is None else mask.astype(jnp.int8))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(static: Static, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    plan = Plan(static, inputs)
    decays = plan.decays(plan.tiles.chunk, gradients=False)
    states, last = plan.states(decays)
    return plan.outputs(decays, states), last[0]


def _scan_forward(static: Static, inputs: Inputs) -> tuple[tuple[jax.Array, jax.Array], Inputs]:
    return _scan(static, inputs), inputs


def _scan_backward(static: Static, inputs: Inputs, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Inputs]:
    dy, end = cotangents
    plan = Plan(static, inputs)
    decays = plan.decays(plan.tiles.gradient_chunk, gradients=True)
    heads, found, starts = plan.h // plan.tiles.gradient_parts, None, []
    for part in range(plan.tiles.gradient_parts):
        first = jnp.full(1, part * heads, jnp.int32)
        if found is not None:  # or XLA might walk all parts before the first one's gradients, and keep all states
            first, through = jax.lax.optimization_barrier((first, found.through))
            found = found._replace(through=through)
        states, last = plan.gradient_states(decays, dy, end, first, heads)
        found = plan.gradients(decays, dy, states, first, heads, found)
        starts.append(last[1])
    assert found is not None
    da = plan.decay_gradients(found)
    dB, dC = jnp.sum(found.dB, axis=(-5, -4), dtype=jnp.float32), jnp.sum(found.dC, axis=-4, dtype=jnp.float32)
    dB, dC = dB.astype(inputs.x.dtype), dC.astype(inputs.x.dtype)
    dD = None if inputs.D is None else jnp.sum(found.dD, axis=(-3, -1))
    dh0 = None if inputs.h0 is None else jnp.concatenate(starts, axis=-3)
    return (Inputs(found.dx, found.ddt[..., : plan.l], da, dB, dC, dD, dh0, None),)


_scan.defvjp(_scan_forward, _scan_backward)
