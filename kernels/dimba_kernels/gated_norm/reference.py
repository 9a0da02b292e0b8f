"""The meaning of `gated_rms_norm`: the formula, one scan and one group after the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gated_rms_norm(y: jax.Array, z: jax.Array, scale: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """See `dimba_kernels.gated_rms_norm`."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    out = []
    for values, gates, factors in zip(y, jnp.split(z, y.shape[0], axis=-1), scale, strict=True):
        gates = gates.astype(wide)
        gated = values.astype(wide) * gates / (1 + jnp.exp(-gates))
        for part, own in zip(jnp.split(gated, groups, axis=-1), jnp.split(factors, groups), strict=True):
            out.append(part / jnp.sqrt(jnp.mean(part**2, axis=-1, keepdims=True) + epsilon) * own.astype(wide))
    return jnp.concatenate(out, axis=-1).astype(y.dtype)
