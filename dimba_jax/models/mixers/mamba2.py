"""Mamba-2's state space (SSD): one scalar decay for every head, so that a scan is made of matmuls."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from dimba_kernels import Implementation, causal_conv1d, causal_conv1d_pair, ssd, ssd_bidirectional, ssd_pair
from dimba_kernels.ssd.prefix import entering_states
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.linear import Part
from dimba_jax.models.mixers.core import (
    SAVED,
    Projected,
    block_steps,
    block_tails,
    blocks,
    init_conv,
    init_dt_bias,
    kernel_choice,
    only,
)
from dimba_jax.models.mixers.state import ScanState
from dimba_jax.models.norm import GatedRMSNorm


class Mamba2Core(nnx.Module):
    """Mamba-2 (arXiv 2405.21060), section 7, between the projections.

    The projection's parts are z, [x, B, C] and dt; x, B and C pass one convolution together. A starts uniform
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
        self.state_dim, self.conv_width = config.state_dim, config.conv_width
        self.dtype = jnp.dtype(config.dtype)
        self.conv_size = self.inner + 2 * self.groups * self.state_dim
        self.parts = (Part(self.inner, "gates"), Part(self.conv_size), Part(self.heads, "steps", along=True))
        self.chunk = config.chunk
        self.implementation: Implementation | None = kernel_choice(config)
        self.conv, self.conv_bias = init_conv(self.conv_size, config.conv_width, rngs)
        self.dt_bias = init_dt_bias(self.heads, rngs)
        self.A_log = nnx.Param(jnp.log(jax.random.uniform(rngs.params(), (self.heads,), minval=1.0, maxval=16.0)))
        self.D = nnx.Param(jnp.ones(self.heads))
        self.norm = GatedRMSNorm(self.inner, self.groups, self.implementation)

    def __call__(
        self,
        projected: Projected,
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l i"], ScanState]:
        tail, h = state if state is not None else (None, None)
        z, x, dt, B, C, tail = self._scan_inputs(projected, mask, tail, reverse=reverse)
        y, h = ssd(
            x, dt, self._A(), B, C, D=self.D[...], h0=h, mask=mask, reverse=reverse, chunk=self.chunk,
            implementation=self.implementation,
        )  # fmt: skip
        return self.norm(checkpoint_name(y, SAVED).reshape(z.shape), z), ScanState(tail, h)

    def pair(
        self,
        other: Mamba2Core,
        projected: Projected,
        projected_back: Projected,
        mask: Bool[Array, "b l"] | None,
        ahead: ScanState | None,
        behind: ScanState | None,
    ) -> tuple[Float[Array, "b l j"], ScanState]:
        """This core forward and another in reverse, in the same launches: both outputs side by side, and this state."""
        tail, h = ahead if ahead is not None else (None, None)
        tail_back, h_back = behind if behind is not None else (None, None)
        (z, xBC, dt), (z_back, xBC_back, dt_back) = projected, projected_back
        parts, (tail, _) = causal_conv1d_pair(
            xBC, xBC_back, _both(self.conv, other.conv), _both(self.conv_bias, other.conv_bias), sizes=self._sizes,
            tail=tail, tail_back=tail_back, mask=mask, activation="silu", implementation=self.implementation,
        )  # fmt: skip
        x, B, C = (checkpoint_name(part, SAVED) for part in parts)
        x, B, C = x.reshape(*x.shape[:3], self.heads, -1), self._grouped(B), self._grouped(C)
        # put together as kernels read it, each head's positions side by side: XLA would choose another order, and copy
        dt = jnp.stack([self._steps(dt).swapaxes(1, 2), other._steps(dt_back).swapaxes(1, 2)]).swapaxes(2, 3)
        h0 = None
        if h is not None or h_back is not None:
            zeros = self.initial_state(projected[0].shape[0]).h
            h0 = jnp.stack([zeros if state is None else state for state in (h, h_back)])
        A, D = jnp.stack([self._A(), other._A()]), _both(self.D, other.D)
        y, h = ssd_pair(x, dt, A, B, C, D=D, h0=h0, mask=mask, chunk=self.chunk, implementation=self.implementation)
        y = checkpoint_name(y, SAVED)
        both = self.norm.pair(other.norm, y.reshape(2, *z.shape), jnp.concatenate([z, z_back], axis=-1))
        return both, ScanState(tail, h[0])

    def both_ways(
        self,
        projected: Projected,
        mask: Bool[Array, "b l"] | None,
        ahead: ScanState | None = None,
        behind: Float[Array, "b h p n"] | None = None,
    ) -> tuple[Float[Array, "b l i"], ScanState | None]:
        """The forward and the reverse scan of the same x, B, C and dt, added; in one kernel call where it can.

        The convolution is the causal one. Each direction's scan holds the position itself.

        Args:
          ahead: the state the forward scan starts from; with None none is returned.
          behind: the state the reverse scan starts from, zeros if None.
        """
        z, x, dt, B, C, tail = self._scan_inputs(projected, mask, None if ahead is None else ahead.tail, reverse=False)
        inputs, D = (x, dt, self._A(), B, C), self.D[...]
        if ahead is None and behind is None:
            y = ssd_bidirectional(*inputs, D=D, mask=mask, chunk=self.chunk, implementation=self.implementation)
            return self.norm(checkpoint_name(y, SAVED).reshape(z.shape), z), None
        scan = partial(ssd, *inputs, mask=mask, chunk=self.chunk, implementation=self.implementation)
        y, h = scan(D=D, h0=None if ahead is None else ahead.h)
        y_back, _ = scan(h0=behind, reverse=True)
        return self.norm((y + y_back).reshape(z.shape), z), ScanState(tail, h)

    def both_ways_behind(
        self, projected: Projected, mask: Bool[Array, "b l"] | None, end: Int[Array, ""] | int
    ) -> Float[Array, "b h p n"]:
        """The state of `both_ways`' reverse scan when it has passed position `end`."""
        _, x, dt, B, C, _ = self._scan_inputs(projected, mask, None, reverse=False)
        rows, l, _ = projected[0].shape
        behind = only(jnp.arange(l) >= end, mask, rows)
        _, h = ssd(
            x, dt, self._A(), B, C, mask=behind, reverse=True, chunk=self.chunk, implementation=self.implementation
        )
        return h

    def initial_state(self, rows: int) -> ScanState:
        """The state before any position."""
        tail = jnp.zeros((rows, self.conv_width - 1, self.conv_size), self.dtype)
        return ScanState(tail, jnp.zeros((rows, self.heads, self.inner // self.heads, self.state_dim)))

    def conv_inputs(self, projected: Projected) -> Float[Array, "b l _"]:
        """The features that pass the convolution: x, B and C."""
        return projected[1]

    def entry_states(
        self, projected: Projected, mask: Bool[Array, "b l"] | None, state: ScanState, block: int
    ) -> ScanState:
        """The states with which the scan enters each block: what every block adds, joined by the kernels' own sum."""
        _, x, dt, B, C, _ = self._scan_inputs(projected, mask, state.tail, reverse=False)
        x, dt, B, C = (blocks(a, block) for a in (x, dt, B, C))
        inside = None if mask is None else blocks(mask, block)
        _, added = ssd(
            x, dt, self._A(), B, C, mask=inside, chunk=self.chunk, implementation=self.implementation
        )  # r h p n
        rows = projected[0].shape[0]
        added = added.reshape(rows, -1, 1, *added.shape[1:])
        log_decay = (block_steps(dt, inside) * self._A()).reshape(rows, -1, 1, self.heads)
        h = entering_states(added, log_decay, state.h[:, None], False)  # b blocks 1 h p n
        return ScanState(block_tails(self.conv_inputs(projected), mask, state.tail, block), h.reshape(-1, *h.shape[3:]))

    def _scan_inputs(
        self,
        projected: Projected,
        mask: Bool[Array, "b l"] | None,
        tail: Array | None,
        *,
        reverse: bool,
    ) -> tuple[
        Float[Array, "b l i"],
        Float[Array, "b l h p"],
        Float[Array, "b l h"],
        Float[Array, "b l g n"],
        Float[Array, "b l g n"],
        Array,
    ]:
        """The gate z, then x, dt, B and C; and the tail of the convolution."""
        z, xBC, dt = projected
        xBC, tail = causal_conv1d(
            xBC, self.conv[...], self.conv_bias[...], tail=tail, mask=mask, reverse=reverse, activation="silu",
            implementation=self.implementation,
        )  # fmt: skip
        x, B, C = jnp.split(checkpoint_name(xBC, SAVED), np.cumsum(self._sizes)[:-1], axis=-1)
        x = x.reshape(*x.shape[:2], self.heads, -1)
        return z, x, self._steps(dt), self._grouped(B), self._grouped(C), tail

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Of x, B and C among the convolution's channels."""
        size = self.groups * self.state_dim
        return self.inner, size, size

    def _grouped(self, x: Float[Array, "*b _"]) -> Float[Array, "*b g n"]:
        return x.reshape(*x.shape[:-1], self.groups, self.state_dim)

    def _steps(self, dt: Float[Array, "b l h"]) -> Float[Array, "b l h"]:
        return jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias[...])

    def _A(self) -> Float[Array, " h"]:
        return -jnp.exp(self.A_log[...])


def _both(forward: nnx.Param, backward: nnx.Param) -> Array:
    """Stacked, as kernels for two scans take them."""
    return jnp.stack([forward[...], backward[...]])
