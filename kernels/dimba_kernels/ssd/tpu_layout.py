"""From the arrays of `ssd` to those of its TPU kernels and back, with the padding in between.

Heads and head dim share the lanes, (b, l, h, p) seen as (b, l, h p), so that no lane is empty when p is 64; dt and the
log decay have positions in the lanes and the heads of one pass in the sublanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import resets
from dimba_kernels.ssd.tpu_tiles import LANES, Tiles, padded_heads, passes_per_block, unrolled

FLOOR = -40.0  # exp(-40) is nothing in any sum: from here on, a decay is a reset
SUBLANES = 8  # rows of a float32 tile


@dataclass(frozen=True)
class Plan:
    """What is static about one call.

    Attributes:
        directions: is the scan reversed? One, or one for each half of the rows of dt (two scans in one launch).
        shared: both directions read the same x, B, C and dt.
        rows: batch rows of one direction.
        length, chunk: positions.
        groups, heads, head_dim, state: as the kernels see them, padded; heads of one group.
        unroll: heads of one pass of the loop in a kernel.
        passes: passes of one block of heads, which is one step of the grid.
        dtype: of x, B, C and the operands of matmuls.
        masked: are there positions that count for nothing (the mask, or a last chunk that is not full)?
        vmem: bytes.
        backward_passes: the same of the backward pass.
    """

    directions: tuple[bool, ...]
    shared: bool
    rows: int
    length: int
    chunk: int
    groups: int
    heads: int
    head_dim: int
    state: int
    unroll: int
    passes: int
    dtype: str
    masked: bool
    vmem: int
    backward_passes: int

    @property
    def for_backward(self) -> Plan:
        return replace(self, passes=self.backward_passes)

    @property
    def chunks(self) -> int:
        return math.ceil(self.length / self.chunk)

    @property
    def per_tile(self) -> int:
        """Heads side by side in one tile."""
        return max(1, LANES // self.head_dim)

    @property
    def width(self) -> int:
        """Lanes of one tile."""
        return self.per_tile * self.head_dim

    @property
    def pass_lanes(self) -> int:
        return self.unroll * self.head_dim

    @property
    def block_lanes(self) -> int:
        return self.passes * self.pass_lanes

    @property
    def blocks(self) -> int:
        """Blocks of heads of one group."""
        return self.heads // (self.unroll * self.passes)

    @property
    def lanes(self) -> int:
        return self.groups * self.heads * self.head_dim

    @property
    def launch_rows(self) -> int:
        return self.rows * len(self.directions)

    @property
    def reach(self) -> float:
        """The most that a chunk may decay by, as a logarithm, for its decays to be factored.

        Half of it is a factor of either sign beside numbers of any usual size. For float32 it is small: the error of a
        factor is that of its exponent, which is rounded relative to its own size.
        """
        return 4.0 if self.dtype == "float32" else 110.0


def plan_for(
    shape: tuple[int, ...],
    groups: int,
    state: int,
    dtype: str,
    directions: tuple[bool, ...],
    masked: bool,
    tiles: Tiles,
) -> Plan:
    """`shape` is that of x, (b, l, h, p)."""
    b, l, h, p = shape
    heads, head_dim = padded_heads(h // groups, p)
    unroll = unrolled(heads, head_dim, tiles.unroll)
    rows = b * len(directions)
    padded_state = LANES * math.ceil(state / LANES)

    def passes(lanes: int) -> int:
        lanes = (lanes if dtype == "bfloat16" else lanes // 4) * LANES // padded_state
        return passes_per_block(heads // unroll, unroll * head_dim, lanes, rows * groups)

    return Plan(
        directions=directions,
        shared=False,
        rows=b,
        length=l,
        chunk=tiles.chunk,
        groups=groups,
        heads=heads,
        head_dim=head_dim,
        state=padded_state,
        unroll=unroll,
        passes=passes(tiles.lanes),
        dtype=dtype,
        masked=masked or l % tiles.chunk != 0,
        vmem=tiles.vmem,
        backward_passes=passes(tiles.backward_lanes),
    )


def to_lanes(plan: Plan, x: jax.Array) -> jax.Array:
    """(..., h, p) -> (..., lanes)."""
    *front, h, p = x.shape
    x = x.reshape(*front, plan.groups, h // plan.groups, p)
    x = _pad(x, {-2: plan.heads, -1: plan.head_dim})
    return x.reshape(*front, plan.lanes)


def from_lanes(plan: Plan, x: jax.Array, h: int, p: int) -> jax.Array:
    """(..., lanes) -> (..., h, p)."""
    front = x.shape[:-1]
    x = x.reshape(*front, plan.groups, plan.heads, plan.head_dim)[..., : h // plan.groups, :p]
    return x.reshape(*front, h, p)


def state_to_rows(plan: Plan, h0: jax.Array) -> jax.Array:
    """(b, h, p, n) -> (b, lanes, state) float32."""
    b, h, p, n = h0.shape
    h0 = h0.astype(jnp.float32).reshape(b, plan.groups, h // plan.groups, p, n)
    return _pad(h0, {2: plan.heads, 3: plan.head_dim, 4: plan.state}).reshape(b, plan.lanes, plan.state)


def state_from_rows(plan: Plan, state: jax.Array, h: int, p: int, n: int) -> jax.Array:
    """(b, lanes, state) -> (b, h, p, n)."""
    state = state.reshape(-1, plan.groups, plan.heads, plan.head_dim, plan.state)
    return state[:, :, : h // plan.groups, :p, :n].reshape(-1, h, p, n)


def decays(
    plan: Plan, dt: jax.Array, A: jax.Array, mask: jax.Array | None, segments: jax.Array | None, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """dt (b, l, h) and A (h,) -> dt and the log decay, float32 (b, passes, heads of a pass, whole chunks).

    At masked positions both are zero; where the state restarts, the log decay is FLOOR.
    """
    dt = dt.astype(jnp.float32)
    if mask is not None:
        dt = jnp.where(mask[..., None], dt, 0)
    a = jnp.maximum(dt * A.astype(jnp.float32), FLOOR)
    if segments is not None:
        a = jnp.where(resets(segments, reverse)[..., None], FLOOR, a)
    return _by_pass(plan, dt), _by_pass(plan, a)


def factored(plan: Plan, a: jax.Array) -> jax.Array:
    """Log decays by pass -> (b, blocks, passes + 1, chunks) int32: 1 where all heads of a pass decay little enough.

    Behind the passes of a block: whether that is so for all of them.

    Then exp(sum_i - m) and exp(m - sum_j), with m halfway, are finite numbers of full precision for all positions of
    the chunk, and their product is the decay from j to i.
    """
    b, passes, _, _ = a.shape
    a = a.reshape(b, passes, plan.unroll, plan.chunks, plan.chunk)
    little = (a.sum(axis=-1) >= -plan.reach) & (a.min(axis=-1) > FLOOR)
    little = little.all(axis=2).reshape(b, passes // plan.passes, plan.passes, plan.chunks)
    return jnp.concatenate([little, little.all(axis=2, keepdims=True)], axis=2).astype(jnp.int32)


def _by_pass(plan: Plan, value: jax.Array) -> jax.Array:
    b, l, h = value.shape
    value = value.transpose(0, 2, 1).reshape(b, plan.groups, h // plan.groups, l)
    value = _pad(value, {2: plan.heads, 3: plan.chunks * plan.chunk})
    return value.reshape(b, plan.groups * plan.heads // plan.unroll, plan.unroll, -1)


def states_by_group(plan: Plan, value: jax.Array) -> jax.Array:
    """B or C (b, l, g, n) -> (b, l, g state)."""
    b, l = value.shape[:2]
    return _pad(value.astype(plan.dtype), {3: plan.state}).reshape(b, l, -1)


def validity(plan: Plan, mask: jax.Array | None) -> jax.Array | None:
    """(b, 1, whole chunks) float32: 1 where a position counts; None if all do."""
    if not plan.masked:
        return None
    valid = jnp.ones((plan.rows, plan.length), jnp.float32) if mask is None else mask.astype(jnp.float32)
    return _pad(valid, {1: plan.chunks * plan.chunk})[:, None]


def _pad(value: jax.Array, sizes: dict[int, int]) -> jax.Array:
    widths = [(0, 0)] * value.ndim
    for axis, size in sizes.items():
        widths[axis] = (0, size - value.shape[axis])
    return value if not any(after for _, after in widths) else jnp.pad(value, widths)
