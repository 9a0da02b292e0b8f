"""The part of a state-space mixer that scans, and what a mixer is.

A core is everything between the two projections (convolution, scan, gate), in one direction. Keeping it
apart lets the directions of a bidirectional mixer share projections or fuse them into one matmul.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from dimba_kernels import Implementation
from dimba_kernels.dispatch import target_platform
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dimba_jax.config import ModelConfig
from dimba_jax.models.linear import Part
from dimba_jax.models.mixers.state import ScanState

SAVED = "mixed"  # the name of what scans read and return and attention reads, for `config.remat` to keep
DT_MIN, DT_MAX = 1e-3, 1e-1  # the step sizes a fresh core starts from, log-uniform


class Mixer(Protocol):
    """Mixes along the sequence. Four ways to run it, which agree wherever they see the same.

    Masks are False at positions that nothing may see; None is all True.
    """

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None, state: Any = None, *, reverse: bool = False
    ) -> tuple[Float[Array, "b l d"], Any]:
        """A row, or (given a state) the segment that goes on from it; returns y and the state behind it.

        A bidirectional mixer looks ahead inside the segment alone. `reverse` is for causal mixers.
        Without a state the second value may be None.
        """
        ...

    def initial_state(self, rows: int, capacity: int) -> Any:
        """The state before any position; attention then holds `capacity` positions at most."""
        ...

    def two_streams(
        self,
        clean: Float[Array, "b l d"],
        noisy: Float[Array, "r k d"],
        mask: Bool[Array, "b l"] | None,
        noisy_mask: Bool[Array, "r k"] | None,
        first: int,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "r k d"]]:
        """All blocks of block diffusion at once: each, clean or noisy, goes on from the clean ones before it.

        The clean row is one block of `first` positions (none if 0), then blocks of k; `noisy` holds the
        other version of the latter, r = b (l - first) / k of them, a row's blocks side by side.
        """
        ...

    def refresh(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None, start: Int[Array, ""] | int, size: int
    ) -> tuple[Float[Array, "b l d"], Any]:
        """A whole row, and what `window` needs of all but the positions [start, start + size)."""
        ...

    def window(self, x: Float[Array, "b k d"], mask: Bool[Array, "b k"] | None, sides: Any) -> Float[Array, "b k d"]:
        """Those positions anew, amid the row as it was."""
        ...


Projected: TypeAlias = Sequence[Float[Array, "b l _"]]  # what comes out of a projection, an array for each part


class Core(Protocol):
    """A one-directional scan between an input projection, cut into `parts`, and an output of `inner` features."""

    parts: tuple[Part, ...]  # of the projection
    inner: int

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs): ...

    def __call__(
        self,
        projected: Projected,
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l i"], ScanState]: ...

    def initial_state(self, rows: int) -> ScanState:
        """The state before any position."""
        ...

    def conv_inputs(self, projected: Projected) -> Float[Array, "b l _"]:
        """The features that pass the convolution."""
        ...

    def entry_states(
        self, projected: Projected, mask: Bool[Array, "b l"] | None, state: ScanState, block: int
    ) -> ScanState:
        """The states with which a forward scan enters each block, (b l / block) rows, a row's blocks side by side."""
        ...


def two_cores(
    forward: Core,
    backward: Core,
    left: Projected,
    right: Projected,
    mask: Bool[Array, "b l"] | None,
    ahead: ScanState | None,
    behind: ScanState | None,
) -> tuple[Float[Array, "b l j"], ScanState]:
    """A core that scans forward and one in reverse: both outputs side by side, and the state the forward one ends in.

    On an accelerator two scans in the same launches fill it better; XLA would only copy to bring them together.
    """
    pair = getattr(forward, "pair", None)
    where = getattr(forward, "implementation", None) or target_platform()
    if pair is not None and where in ("gpu", "tpu"):
        return pair(backward, left, right, mask, ahead, behind)
    y, state = forward(left, mask, ahead)
    y_back, _ = backward(right, mask, behind, reverse=True)
    return jnp.concatenate([y, y_back], axis=-1), state


def state_before(
    core: Core, projected: Projected, mask: Bool[Array, "b l"] | None, start: Int[Array, ""] | int
) -> ScanState:
    """The state with which the forward scan enters position `start`, which may be traced."""
    # behind `start` the masked scan passes its state on untouched; the convolution of what is before never sees it
    rows, l, _ = projected[0].shape
    _, state = core(projected, only(jnp.arange(l) < start, mask, rows))
    return ScanState(_conv_slice(core, projected, mask, start, left=True), state.h)


def state_behind(
    core: Core, projected: Projected, mask: Bool[Array, "b l"] | None, end: Int[Array, ""] | int
) -> ScanState:
    """The state with which the reverse scan leaves position `end`, the first behind a window."""
    rows, l, _ = projected[0].shape
    behind = only(jnp.arange(l) >= end, mask, rows)
    _, state = core(projected, behind, reverse=True)
    return ScanState(_conv_slice(core, projected, mask, end, left=False), state.h)


def only(positions: Bool[Array, " l"], mask: Bool[Array, "b l"] | None, rows: int) -> Bool[Array, "b l"]:
    """The mask, False outside these positions too."""
    return jnp.broadcast_to(positions, (rows, positions.size)) if mask is None else mask & positions


def _conv_slice(core: Core, projected: Projected, mask: Array | None, at: Array | int, *, left: bool) -> Array:
    """The k-1 inputs of the convolution just before position `at`, or (not `left`) from it on."""
    inputs = core.conv_inputs(projected)
    if mask is not None:
        inputs = jnp.where(mask[..., None], inputs, 0)
    width = core.initial_state(1).tail.shape[1]
    padded = jnp.pad(inputs, ((0, 0), (width, 0) if left else (0, width), (0, 0)))
    return jax.lax.dynamic_slice_in_dim(padded, at, width, axis=1)


def block_tails(
    inputs: Float[Array, "b l c"], mask: Bool[Array, "b l"] | None, tail: Float[Array, "b k_minus_1 c"], block: int
) -> Float[Array, "r k_minus_1 c"]:
    """The convolution's inputs just before each block of a row that `tail` comes before."""
    if mask is not None:
        inputs = jnp.where(mask[..., None], inputs, 0)
    (_, l, c), width = inputs.shape, tail.shape[1]
    padded = jnp.concatenate([tail.astype(inputs.dtype), inputs], axis=1)
    index = jnp.arange(0, l, block)[:, None] + jnp.arange(width)
    return padded[:, index].reshape(-1, width, c)


def blocks(x: Array, size: int) -> Array:
    """(b, l, ...) as (b l / size, size, ...), a row's blocks side by side."""
    return x.reshape(-1, size, *x.shape[2:])


def block_steps(dt: Float[Array, "r k h"], mask: Bool[Array, "r k"] | None) -> Float[Array, "r h"]:
    """The step sizes of each block, summed: exp(A times it) is how far a block lets a state decay."""
    return jnp.sum(dt if mask is None else jnp.where(mask[..., None], dt, 0.0), axis=1)


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
