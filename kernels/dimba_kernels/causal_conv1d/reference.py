"""The meaning of the causal convolution: a window pushed along the sequence, one position a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import resets


def causal_conv1d(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    *,
    tail: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    reverse: bool,
    activation: str | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.causal_conv1d`."""
    b, l, d = x.shape
    k = w.shape[1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mask = jnp.ones((b, l), bool) if mask is None else mask
    tail = jnp.zeros((b, k - 1, d), wide) if tail is None else tail.astype(wide)
    bias = jnp.zeros(d, wide) if bias is None else bias.astype(wide)
    reset = jnp.zeros((b, l), bool) if segments is None else resets(segments, reverse)
    inputs = x.astype(wide)
    if reverse:
        inputs, mask, tail, reset = inputs[:, ::-1], mask[:, ::-1], tail[:, ::-1], reset[:, ::-1]

    def step(tail: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x_i, valid, reset_i = at
        tail = jnp.where(reset_i[:, None, None], 0, tail)
        x_i = jnp.where(valid[:, None], x_i, 0)
        window = jnp.concatenate([tail, x_i[:, None]], axis=1)
        y_i = jnp.sum(window * w.T.astype(wide)[None], axis=1) + bias[None]
        if activation == "silu":
            y_i = jax.nn.silu(y_i)
        return window[:, 1:], jnp.where(valid[:, None], y_i, 0)

    tail, y = jax.lax.scan(step, tail, (inputs.swapaxes(0, 1), mask.swapaxes(0, 1), reset.swapaxes(0, 1)))
    y = y.swapaxes(0, 1)
    if reverse:
        y, tail = y[:, ::-1], tail[:, ::-1]
    return y.astype(x.dtype), tail.astype(x.dtype)
