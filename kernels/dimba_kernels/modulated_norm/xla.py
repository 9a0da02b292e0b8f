"""Add and norm as XLA fuses it."""

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
        branch = branch.astype(wide)
        total = total + (branch if gate is None else gate.astype(wide) * branch)
    total = total.astype(h.dtype)
    wider = total.astype(wide)  # what goes on is what is normed
    out = wider * jax.lax.rsqrt(jnp.mean(wider * wider, axis=-1, keepdims=True) + epsilon) * weight.astype(wide)
    if scale is not None:
        out = out * (1 + scale.astype(wide))
    if shift is not None:
        out = out + shift.astype(wide)
    return total, out.astype(dtype)
