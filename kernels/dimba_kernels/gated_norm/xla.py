"""The gated norm as XLA fuses it."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gated_rms_norm(y: jax.Array, z: jax.Array, scale: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """See `dimba_kernels.gated_rms_norm`."""
    gates = jnp.split(z, y.shape[0], axis=-1)
    out = [_norm(*one, groups, epsilon) for one in zip(y, gates, scale, strict=True)]
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=-1)


def _norm(y: jax.Array, z: jax.Array, scale: jax.Array, groups: int, epsilon: float) -> jax.Array:
    """(b, l, i), (b, l, i), (i,) -> (b, l, i)."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    gated = y.astype(wide) * jax.nn.silu(z.astype(wide))
    if groups == 1:  # an axis of length 1 makes XLA's CPU backend leave its fast reductions
        normed = _unit(gated, epsilon)
    else:
        normed = _unit(gated.reshape(*gated.shape[:-1], groups, -1), epsilon).reshape(gated.shape)
    return (normed * scale.astype(wide)).astype(y.dtype)


def _unit(x: jax.Array, epsilon: float) -> jax.Array:
    """Rescales the last axis to a mean square of one."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
