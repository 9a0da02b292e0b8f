"""Mamba-2's state space (SSD): one scalar decay for every head, so that a scan is made of matmuls."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from dimba_kernels import Implementation, causal_conv1d, ssd, ssd_bidirectional
from flax import nnx
from jaxtyping import Array, Bool, Float

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.mixers.core import ScanState, init_conv, init_dt_bias, kernel_choice
from dimba_jax.models.norm import GatedRMSNorm


class Mamba2Core(nnx.Module):
    """Mamba-2 (arXiv 2405.21060), section 7, between the projections.

    The projection holds [z, x, B, C, dt]; x, B and C pass one convolution together. A starts uniform
    in [-16, -1] for every head, D at 1, dt log-uniform in [1e-3, 1e-1]. The gated norm works in
    `groups` slices, so that groups never meet before the output projection.

    Raises:
      ConfigError: head_dim does not divide expand * d_model, or groups do not divide the heads.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.inner = config.expand * config.d_model
        if self.inner % config.head_dim:
            raise ConfigError(
                f"config.model.head_dim={config.head_dim} does not divide expand * d_model = {self.inner}: "
                "choose one of its divisors"
            )
        self.heads, self.groups = self.inner // config.head_dim, config.groups
        if self.heads % self.groups:
            raise ConfigError(
                f"config.model.groups={self.groups} does not divide the {self.heads} heads "
                f"(expand * d_model / head_dim): choose one of their divisors"
            )
        self.state_dim = config.state_dim
        self.conv_size = self.inner + 2 * self.groups * self.state_dim
        self.projected = self.inner + self.conv_size + self.heads
        self.chunk = config.chunk
        self.implementation: Implementation | None = kernel_choice(config)
        self.conv, self.conv_bias = init_conv(self.conv_size, config.conv_width, rngs)
        self.dt_bias = init_dt_bias(self.heads, rngs)
        self.A_log = nnx.Param(jnp.log(jax.random.uniform(rngs.params(), (self.heads,), minval=1.0, maxval=16.0)))
        self.D = nnx.Param(jnp.ones(self.heads))
        self.norm = GatedRMSNorm(self.inner, self.groups)

    def __call__(
        self,
        projected: Float[Array, "b l w"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l i"], ScanState]:
        tail, h = state if state is not None else (None, None)
        z, xBC, dt = self._split(projected)
        x, B, C, tail = self._convolve(xBC, mask, tail, reverse=reverse)
        y, h = ssd(
            x, self._step(dt), -jnp.exp(self.A_log[...]), B, C, D=self.D[...], h0=h, mask=mask, reverse=reverse,
            chunk=self.chunk, implementation=self.implementation,
        )  # fmt: skip
        return self.norm(y.reshape(z.shape), z), ScanState(tail, h)

    def both_ways(self, projected: Float[Array, "b l w"], mask: Bool[Array, "b l"] | None) -> Float[Array, "b l i"]:
        """The forward and the reverse scan of the same x, B, C and dt, added, in one kernel call.

        The convolution is the causal one. Each direction's scan holds the position itself.
        """
        z, xBC, dt = self._split(projected)
        x, B, C, _ = self._convolve(xBC, mask, None, reverse=False)
        y = ssd_bidirectional(
            x, self._step(dt), -jnp.exp(self.A_log[...]), B, C, D=self.D[...], mask=mask, chunk=self.chunk,
            implementation=self.implementation,
        )  # fmt: skip
        return self.norm(y.reshape(z.shape), z)

    def _split(self, projected: Float[Array, "b l w"]) -> list[Float[Array, "b l _"]]:
        return jnp.split(projected, [self.inner, self.inner + self.conv_size], axis=-1)

    def _convolve(
        self, xBC: Float[Array, "b l _"], mask: Bool[Array, "b l"] | None, tail: Array | None, *, reverse: bool
    ) -> tuple[Float[Array, "b l h p"], Float[Array, "b l g n"], Float[Array, "b l g n"], Array]:
        xBC, tail = causal_conv1d(
            xBC, self.conv[...], self.conv_bias[...], tail=tail, mask=mask, reverse=reverse, activation="silu",
            implementation=self.implementation,
        )  # fmt: skip
        x, B, C = jnp.split(xBC, [self.inner, self.inner + self.groups * self.state_dim], axis=-1)
        b, l, _ = x.shape
        grouped = (b, l, self.groups, self.state_dim)
        return x.reshape(b, l, self.heads, -1), B.reshape(grouped), C.reshape(grouped), tail

    def _step(self, dt: Float[Array, "b l h"]) -> Float[Array, "b l h"]:
        return jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias[...])
