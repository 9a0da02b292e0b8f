"""`ssd` on a GPU: Triton kernels in chunks, forward and backward.

Three launches forward: the decays of each position's chunk, the states entering the chunks, and y. Backward they
are four: decays, states and the states' gradients, all other gradients, the decays' own gradient; large states are
taken a part of the heads at a time, through all four. Nothing but the inputs is kept for the backward pass. What lies
between the arguments and the kernels (dt A, masks, resets) is left to XLA and its automatic differentiation: it
concerns small arrays only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

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
    whole = plan.whole()
    decays = plan.decays(whole, plan.tiles.chunk, gradients=False)
    states, last = plan.states(whole, decays)
    return plan.outputs(decays, states), last


def _scan_forward(static: Static, primals: Any) -> tuple[tuple[jax.Array, jax.Array], Inputs]:
    values: Any = (None if primal is None else primal.value for primal in primals)
    inputs = Inputs(*values)
    return _scan(static, inputs), inputs


def _scan_backward(static: Static, inputs: Inputs, cotangents: tuple[Any, Any]) -> tuple[Inputs]:
    dy, end = cotangents
    dy = jnp.zeros(inputs.x.shape, inputs.x.dtype) if isinstance(dy, SymbolicZero) else dy
    end = None if isinstance(end, SymbolicZero) else end
    plan = Plan(static, inputs)
    parts, found = [], None
    for number in range(plan.tiles.gradient_parts):
        part = plan.part(number, end)
        if found is not None:  # or XLA might begin all parts before it ends the first, and keep all states
            launch, parts[-1] = jax.lax.optimization_barrier((part.launch, parts[-1]))
            part = part._replace(launch=launch)
        decays = plan.decays(part, plan.tiles.gradient_chunk, gradients=True)
        states, dh0 = plan.gradient_states(part, decays, dy, end)
        found = plan.gradients(part, decays, dy, states, found)
        da = plan.decay_gradients(part, found)
        dD = None if inputs.D is None else jnp.sum(found.dD, axis=(-3, -1))
        parts.append((found.ddt[..., : plan.l], da, dD, None if inputs.h0 is None else dh0))
    assert found is not None
    dB, dC = jnp.sum(found.dB, axis=(-5, -4), dtype=jnp.float32), jnp.sum(found.dC, axis=-4, dtype=jnp.float32)
    dB, dC = dB.astype(inputs.x.dtype), dC.astype(inputs.x.dtype)
    ddt, da, dD, dh0 = zip(*parts, strict=True)
    return (
        Inputs(
            found.dx,
            jnp.concatenate(ddt, -2),
            jnp.concatenate(da, -2),
            dB,
            dC,
            None if inputs.D is None else jnp.concatenate(dD, -1),
            None if inputs.h0 is None else jnp.concatenate(dh0, -3),
            None,
        ),
    )


_scan.defvjp(_scan_forward, _scan_backward, symbolic_zeros=True)
