"""The meaning of `ssd`: the recurrence itself, one position a step, in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import resets, unmasked


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    reverse: bool,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd`; `chunk` has no effect here."""
    del chunk
    x, dt, B, C = unmasked(mask, x, dt, B, C)
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    h0 = jnp.zeros((b, h, p, n), wide) if h0 is None else h0.astype(wide)
    mask = jnp.ones((b, l), bool) if mask is None else mask
    reset = jnp.zeros((b, l), bool) if segments is None else resets(segments, reverse)
    rate = A.astype(wide)[None]

    def step(state: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x_i, dt_i, B_i, C_i, valid, reset_i = at  # (b h p), (b h), (b h n), (b h n), (b,), (b,)
        state = jnp.where(reset_i[:, None, None, None], 0, state)
        decay = jnp.exp(dt_i * rate)[..., None, None]
        new = decay * state + (dt_i[..., None] * x_i)[..., None] * B_i[:, :, None, :]
        y_i = jnp.sum(new * C_i[:, :, None, :], axis=-1)
        if D is not None:
            y_i = y_i + D.astype(wide)[None, :, None] * x_i
        state = jnp.where(valid[:, None, None, None], new, state)
        return state, jnp.where(valid[:, None, None], y_i, 0)

    inputs = (
        x.astype(wide),
        dt.astype(wide),
        jnp.repeat(B.astype(wide), h // g, axis=2),
        jnp.repeat(C.astype(wide), h // g, axis=2),
        mask,
        reset,
    )
    inputs = tuple(value.swapaxes(0, 1) for value in inputs)
    h_last, y = jax.lax.scan(step, h0, inputs, reverse=reverse)
    return y.swapaxes(0, 1).astype(x.dtype), h_last


def ssd_bidirectional(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    chunk: int | None,
) -> jax.Array:
    """See `dimba_kernels.ssd_bidirectional`."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rest: dict[str, Any] = dict(h0=None, mask=mask, segments=segments, chunk=chunk)
    forward, _ = ssd(wide, dt, A, B, C, D=D, reverse=False, **rest)
    backward, _ = ssd(wide, dt, A, B, C, D=None, reverse=True, **rest)
    return (forward + backward).astype(x.dtype)


def ssd_pair(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd_pair`: one after the other."""
    rest: dict[str, Any] = dict(mask=mask, segments=segments, chunk=chunk)
    (y, h_last), (y_back, h_first) = (
        ssd(
            x[way], dt[way], A[way], B[way], C[way],
            D=None if D is None else D[way], h0=None if h0 is None else h0[way], reverse=bool(way), **rest,
        )
        for way in (0, 1)
    )  # fmt: skip
    return jnp.stack([y, y_back]), jnp.stack([h_last, h_first])
