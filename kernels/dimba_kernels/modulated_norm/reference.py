"""The meaning of `modulated_rms_norm`: the formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def modulated_rms_norm(
    h: jax.Array,
    weight: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    branch: jax.Array | None,
    gate: jax.Array | None,
    *,
    dtype: jnp.dtype,
    epsilon: float,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.modulated_rms_norm`."""
    wide = jnp.promote_types(h.dtype, jnp.float32)
    total = h.astype(wide)
    if branch is not None:
        total = total + (1 if gate is None else gate.astype(wide)) * branch.astype(wide)
    total = total.astype(h.dtype)
    wider = total.astype(wide)  # what goes on is what is normed
    out = wider / jnp.sqrt(jnp.mean(wider**2, axis=-1, keepdims=True) + epsilon) * weight.astype(wide)
    out = out * (1 + (0 if scale is None else scale.astype(wide)))
    out = out + (0 if shift is None else shift.astype(wide))
    return total, out.astype(dtype)
