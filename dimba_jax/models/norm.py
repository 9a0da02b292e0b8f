"""Root-mean-square norms; their statistics are float32 whatever the dtype of the activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-5


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis; returns float32."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return unit_rms(x.astype(jnp.float32)) * self.scale[...]


class GatedRMSNorm(nnx.Module):
    """RMSNorm of y * silu(z), each of `groups` slices of the last axis by its own mean square (Mamba-2)."""

    def __init__(self, size: int, groups: int):
        self.scale = nnx.Param(jnp.ones(size))
        self.groups = groups

    def __call__(self, y: Float[Array, "b l d"], z: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        gated = y.astype(jnp.float32) * jax.nn.silu(z.astype(jnp.float32))
        if self.groups == 1:  # an axis of length 1 makes XLA's CPU backend leave its fast reductions
            normed = unit_rms(gated)
        else:
            normed = unit_rms(gated.reshape(*gated.shape[:-1], self.groups, -1)).reshape(gated.shape)
        return (normed * self.scale[...]).astype(y.dtype)


def unit_rms(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rescales the last axis to a mean square of one."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
