"""Mamba's selective state space (S6): a diagonal state for every channel."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from dimba_kernels import Implementation, causal_conv1d, selective_scan
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from dimba_jax.config import ModelConfig
from dimba_jax.models.linear import Linear, Part
from dimba_jax.models.mixers.core import (
    SAVED,
    Projected,
    block_steps,
    block_tails,
    blocks,
    init_conv,
    init_dt_bias,
    kernel_choice,
)
from dimba_jax.models.mixers.state import ScanState


class MambaCore(nnx.Module):
    """Mamba (arXiv 2312.00752), algorithm 2 and figure 3, between the projections.

    The projection's parts are x and z; B, C and the low-rank dt are read from x after its convolution.
    A starts at -1..-n (S4D-real), D at 1, dt log-uniform in [1e-3, 1e-1].
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.inner = config.expand * config.d_model
        self.parts = (Part(self.inner), Part(self.inner))
        self.rank = math.ceil(config.d_model / 16)
        self.state_dim, self.conv_width = config.state_dim, config.conv_width
        self.dtype = jnp.dtype(config.dtype)
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
        projected: Projected,
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l i"], ScanState]:
        tail, h = state if state is not None else (None, None)
        z = projected[1]
        x, dt, B, C, tail = self._scan_inputs(projected, mask, tail, reverse=reverse)
        y, h = selective_scan(
            x, dt, self._A(), B, C, D=self.D[...], z=z, h0=h, mask=mask, dt_bias=self.dt_bias[...], dt_softplus=True,
            reverse=reverse, implementation=self.implementation,
        )  # fmt: skip
        return checkpoint_name(y, SAVED), ScanState(tail, h)

    def initial_state(self, rows: int) -> ScanState:
        """The state before any position."""
        tail = jnp.zeros((rows, self.conv_width - 1, self.inner), self.dtype)
        return ScanState(tail, jnp.zeros((rows, self.inner, self.state_dim)))

    def conv_inputs(self, projected: Projected) -> Float[Array, "b l _"]:
        """The features that pass the convolution: x."""
        return projected[0]

    def entry_states(
        self, projected: Projected, mask: Bool[Array, "b l"] | None, state: ScanState, block: int
    ) -> ScanState:
        """The states with which the scan enters each block: what every block adds, joined by a scan over blocks."""
        x, dt, B, C, _ = self._scan_inputs(projected, mask, state.tail, reverse=False)
        x, dt, B, C = (blocks(a, block) for a in (x, dt, B, C))
        inside = None if mask is None else blocks(mask, block)
        dt_bias = self.dt_bias[...]
        _, added = selective_scan(
            x, dt, self._A(), B, C, mask=inside, dt_bias=dt_bias, dt_softplus=True, implementation=self.implementation
        )
        steps = jax.nn.softplus(dt.astype(jnp.float32) + dt_bias)
        decay = jnp.exp(block_steps(steps, inside)[..., None] * self._A())
        decay, added = (a.reshape(projected[0].shape[0], -1, *a.shape[1:]) for a in (decay, added))
        decay, added = jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decay, added), axis=1)
        left = decay * state.h[:, None] + added  # the states behind each block
        h = jnp.concatenate([state.h[:, None], left[:, :-1]], axis=1)
        return ScanState(block_tails(self.conv_inputs(projected), mask, state.tail, block), h.reshape(-1, *h.shape[2:]))

    def _scan_inputs(
        self, projected: Projected, mask: Bool[Array, "b l"] | None, tail: Array | None, *, reverse: bool
    ) -> tuple[Float[Array, "b l i"], Float[Array, "b l i"], Float[Array, "b l n"], Float[Array, "b l n"], Array]:
        """x, dt before its bias and softplus (the scan applies them), B and C; and the tail of the convolution."""
        x, tail = causal_conv1d(
            self.conv_inputs(projected), self.conv[...], self.conv_bias[...], tail=tail, mask=mask, reverse=reverse,
            activation="silu", implementation=self.implementation,
        )  # fmt: skip
        x = checkpoint_name(x, SAVED)
        low_rank, B, C = jnp.split(self.x_proj(x), [self.rank, self.rank + self.state_dim], axis=-1)
        return x, self.dt_proj(low_rank), B, C, tail

    def _A(self) -> Float[Array, "i n"]:
        return -jnp.exp(self.A_log[...])
