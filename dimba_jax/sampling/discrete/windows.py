"""Windows of rows: reading them, writing them back, and the states they went through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int


def record(
    trajectory: Int[Array, "stages b l"],
    path: Int[Array, "states b k"],
    steps: Int[Array, " stages"],
    start: Int[Array, ""] | int,
) -> Int[Array, "stages b l"]:
    """Writes a block's states into a trajectory.

    Args:
      path: the block's states, each a step behind the other; no trajectory is asked for if there are none.
      steps: how many steps into the block each stage stands; stages at or before its first state are left alone.
      start: where the block begins.
    """
    if not len(path):
        return trajectory
    states = path[jnp.clip(steps, 0, len(path) - 1)]
    before = part(trajectory, start, path.shape[-1])
    return put(trajectory, jnp.where(steps[:, None, None] > 0, states, before), start)


def part(x: Array, start: Int[Array, ""] | int, size: int) -> Array:
    """`size` positions of every row, from `start` on: the last axis of (..., l)."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=-1)


def put(x: Array, new: Array, start: Int[Array, ""] | int) -> Array:
    """x with `new` in the place of its positions from `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=-1)
