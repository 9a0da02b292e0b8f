"""Root-mean-square norms; their statistics are float32 whatever the dtype of the activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from dimba_kernels import Implementation, gated_rms_norm, modulated_rms_norm
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-5


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis; returns float32."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return unit_rms(x.astype(jnp.float32)) * self.scale[...]

    def modulated(
        self,
        h: Float[Array, "b l d"],
        y: Float[Array, "b l d"] | None,
        gate: Float[Array, "#b #l d"] | None = None,
        *,
        scale: Float[Array, "#b #l d"] | None = None,
        shift: Float[Array, "#b #l d"] | None = None,
        dtype: jnp.dtype,
        implementation: Implementation | None,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l d"]]:
        """total = h + gate y (h without a y), and this norm of it, times 1 + scale, plus shift, in `dtype`."""
        by_position = any(x is not None and x.shape[1] > 1 for x in (gate, scale, shift))
        return modulated_rms_norm(
            h, self.scale[...], scale, shift, y, gate, dtype=dtype, epsilon=EPSILON,
            implementation=_implementation(implementation, kernel=not by_position),
        )  # fmt: skip


class GatedRMSNorm(nnx.Module):
    """RMSNorm of y * silu(z), each of `groups` slices of the last axis by its own mean square (Mamba-2)."""

    def __init__(self, size: int, groups: int, implementation: Implementation | None):
        self.scale = nnx.Param(jnp.ones(size))
        self.groups = groups
        self.implementation: Implementation | None = _implementation(implementation)

    def __call__(self, y: Float[Array, "b l d"], z: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self._norm(y[None], z, self.scale[...][None])

    def pair(self, other: GatedRMSNorm, y: Float[Array, "2 b l d"], z: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        """This norm of y[0] and another of y[1], their gates and their results side by side: e = 2 d."""
        return self._norm(y, z, jnp.stack([self.scale[...], other.scale[...]]))

    def _norm(self, y: Array, z: Array, scale: Array) -> Array:
        return gated_rms_norm(y, z, scale, groups=self.groups, epsilon=EPSILON, implementation=self.implementation)


def _implementation(asked: Implementation | None, *, kernel: bool = True) -> Implementation | None:
    """A norm's, where this is that of the scans: XLA's where there is no kernel, which is so for TPUs."""
    return None if asked == "tpu" or (asked == "gpu" and not kernel) else asked


def unit_rms(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rescales the last axis to a mean square of one."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
