"""Mamba's selective state space (S6): a diagonal state for every channel."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from dimba_kernels import Implementation, causal_conv1d, selective_scan
from flax import nnx
from jaxtyping import Array, Bool, Float

from dimba_jax.config import ModelConfig
from dimba_jax.models.linear import Linear
from dimba_jax.models.mixers.core import ScanState, init_conv, init_dt_bias, kernel_choice


class MambaCore(nnx.Module):
    """Mamba (arXiv 2312.00752), algorithm 2 and figure 3, between the projections.

    The projection holds [x, z]; B, C and the low-rank dt are read from x after its convolution.
    A starts at -1..-n (S4D-real), D at 1, dt log-uniform in [1e-3, 1e-1].
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.inner = config.expand * config.d_model
        self.projected = 2 * self.inner
        self.rank = math.ceil(config.d_model / 16)
        self.state_dim = config.state_dim
        self.implementation: Implementation | None = kernel_choice(config)
        self.conv, self.conv_bias = init_conv(self.inner, config.conv_width, rngs)
        self.x_proj = Linear(self.inner, self.rank + 2 * self.state_dim, config, rngs=rngs)
        # the standard deviation of Mamba's uniform ±1/sqrt(rank)
        self.dt_proj = Linear(self.rank, self.inner, config, scale=3**-0.5, rngs=rngs)
        self.dt_bias = init_dt_bias(self.inner, rngs)
        self.A_log = nnx.Param(jnp.log(jnp.tile(jnp.arange(1.0, self.state_dim + 1), (self.inner, 1))))
        self.D = nnx.Param(jnp.ones(self.inner))

    def __call__(
        self,
        projected: Float[Array, "b l w"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l i"], ScanState]:
        tail, h = state if state is not None else (None, None)
        x, z = jnp.split(projected, 2, axis=-1)
        x, tail = causal_conv1d(
            x, self.conv[...], self.conv_bias[...], tail=tail, mask=mask, reverse=reverse, activation="silu",
            implementation=self.implementation,
        )  # fmt: skip
        low_rank, B, C = jnp.split(self.x_proj(x), [self.rank, self.rank + self.state_dim], axis=-1)
        dt = jax.nn.softplus(self.dt_proj(low_rank).astype(jnp.float32) + self.dt_bias[...])
        y, h = selective_scan(
            x, dt, -jnp.exp(self.A_log[...]), B, C, D=self.D[...], z=z, h0=h, mask=mask, reverse=reverse,
            implementation=self.implementation,
        )  # fmt: skip
        return y, ScanState(tail, h)
