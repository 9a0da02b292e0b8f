"""The causal convolution as k shifted copies, multiplied and added: one fused pass on any backend."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import runs


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
    if mask is not None:
        x = jnp.where(mask[..., None], x, 0)
    tail = jnp.zeros((b, k - 1, d), x.dtype) if tail is None else tail.astype(x.dtype)
    padded = jnp.concatenate([x, tail] if reverse else [tail, x], axis=1)
    numbers = None
    if segments is not None:  # the tail belongs to the run of the position next to it
        numbers = jnp.pad(runs(segments), ((0, 0), (0, k - 1) if reverse else (k - 1, 0)), mode="edge")
    # Kept for the backward pass are the inputs alone: the float32 sums are cheaper to redo than to store.
    run = jax.checkpoint(partial(_shift_and_add, reverse=reverse, activation=activation))
    y = run(padded, w, bias, numbers)
    if mask is not None:
        y = jnp.where(mask[..., None], y, 0)
    carried = slice(k - 1) if reverse else slice(l, None)
    tail = padded[:, carried]
    if numbers is not None:
        here = numbers[:, :1] if reverse else numbers[:, -1:]
        tail = jnp.where((numbers[:, carried] == here)[..., None], tail, 0)
    return y, tail


def _shift_and_add(
    padded: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    numbers: jax.Array | None,
    *,
    reverse: bool,
    activation: str | None,
) -> jax.Array:
    """(b, l+k-1, d), (d, k), and of every padded position its run's number (b, l+k-1) -> (b, l, d)."""
    wide = jnp.promote_types(padded.dtype, jnp.float32)
    k = w.shape[1]
    l = padded.shape[1] - (k - 1)
    taps = w.astype(wide).T[::-1] if reverse else w.astype(wide).T

    def seen(j: int) -> jax.Array:
        x = padded[:, j : j + l]
        if numbers is None:
            return x
        own = numbers[:, :l] if reverse else numbers[:, k - 1 :]
        return jnp.where((numbers[:, j : j + l] == own)[..., None], x, 0)

    y = reduce(jnp.add, [taps[j][None, None] * seen(j).astype(wide) for j in range(k)])
    if bias is not None:
        y = y + bias.astype(wide)[None, None]
    if activation == "silu":
        y = jax.nn.silu(y)
    return y.astype(padded.dtype)
