"""The meaning of `selective_scan`: the recurrence itself, one position a step, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import resets, unmasked


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
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.selective_scan`; `chunk` has no effect here."""
    del chunk
    u, dt, B, C = unmasked(mask, u, dt, B, C)
    b, l, d = u.shape
    wide = jnp.promote_types(u.dtype, jnp.float32)
    dt = dt.astype(wide)
    if dt_bias is not None:
        dt = dt + dt_bias.astype(wide)[None, None]
    if dt_softplus:
        dt = jax.nn.softplus(dt)
    h0 = jnp.zeros((b, *A.shape), wide) if h0 is None else h0.astype(wide)
    mask = jnp.ones((b, l), bool) if mask is None else mask
    reset = jnp.zeros((b, l), bool) if segments is None else resets(segments, reverse)

    def step(state: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        u_i, dt_i, B_i, C_i, valid, reset_i = at  # (b d), (b d), (b n), (b n), (b,), (b,)
        state = jnp.where(reset_i[:, None, None], 0, state)
        decay = jnp.exp(dt_i[..., None] * A.astype(wide)[None])
        new = decay * state + (dt_i * u_i)[..., None] * B_i[:, None, :]
        y_i = jnp.sum(new * C_i[:, None, :], axis=-1)
        if D is not None:
            y_i = y_i + D.astype(wide)[None] * u_i
        state = jnp.where(valid[:, None, None], new, state)
        return state, jnp.where(valid[:, None], y_i, 0)

    inputs = (u.astype(wide), dt, B.astype(wide), C.astype(wide), mask, reset)
    inputs = tuple(value.swapaxes(0, 1) for value in inputs)
    h_last, y = jax.lax.scan(step, h0, inputs, reverse=reverse)
    y = y.swapaxes(0, 1)
    if z is not None:
        (z,) = unmasked(mask, z)
        y = y * jax.nn.silu(z.astype(wide))
    return y.astype(u.dtype), h_last
