"""What the state-space mixers have in common: projections around a core that scans in one direction.

A core is everything between the two projections (convolution, scan, gate). Keeping it apart lets the
directions of a bidirectional mixer share projections or fuse them into one matmul.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from dimba_kernels import Implementation
from flax import nnx
from jaxtyping import Array, Bool, Float

from dimba_jax.config import ModelConfig
from dimba_jax.models.linear import Linear

DT_MIN, DT_MAX = 1e-3, 1e-1  # the step sizes a fresh core starts from, log-uniform


class ScanState(NamedTuple):
    """What a causal mixer carries past the end of a segment."""

    tail: Float[Array, "b k_minus_1 d"]  # the last inputs of the convolution
    h: Float[Array, "b ..."]  # the state of the scan, float32


class Mixer(Protocol):
    """Mixes along the sequence, causally in the given direction unless built bidirectional."""

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l d"], ScanState | None]: ...


class Core(Protocol):
    """A one-directional scan between an input projection of `projected` and an output of `inner` features."""

    projected: int
    inner: int

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs): ...

    def __call__(
        self,
        projected: Float[Array, "b l w"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l i"], ScanState]: ...


class Causal(nnx.Module):
    """One core between its projections: the Mamba block of the papers, in either direction."""

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        self.core = core(config, rngs=rngs)
        self.in_proj = Linear(config.d_model, self.core.projected, config, rngs=rngs)
        self.out_proj = Linear(self.core.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l d"], ScanState]:
        y, state = self.core(self.in_proj(x), mask, state, reverse=reverse)
        return self.out_proj(y), state


def init_dt_bias(size: int, rngs: nnx.Rngs) -> nnx.Param:
    """Biases whose softplus is log-uniform in [DT_MIN, DT_MAX] (Mamba, section 3.6)."""
    uniform = jax.random.uniform(rngs.params(), (size,))
    dt = jnp.exp(math.log(DT_MIN) + uniform * math.log(DT_MAX / DT_MIN))
    return nnx.Param(dt + jnp.log(-jnp.expm1(-dt)))  # the inverse of softplus


def init_conv(size: int, width: int, rngs: nnx.Rngs) -> tuple[nnx.Param, nnx.Param]:
    """Weights (size, width) and biases (size,) of a depthwise convolution, uniform in ±1/sqrt(width)."""
    bound = width**-0.5
    weights = jax.random.uniform(rngs.params(), (size, width), minval=-bound, maxval=bound)
    return nnx.Param(weights), nnx.Param(jax.random.uniform(rngs.params(), (size,), minval=-bound, maxval=bound))


def kernel_choice(config: ModelConfig) -> Implementation | None:
    """The `implementation` argument of the scan kernels: None lets them pick the best there is."""
    return None if config.implementation == "auto" else config.implementation
