"""From losses at positions to one number: which positions count, and sums that add up over microbatches."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def counted(
    target: Bool[Array, "b l"],
    valid: Bool[Array, "b l"],
    loss_on: Literal["target", "all"],
    loss_on_padding: bool,
) -> Bool[Array, "b l"]:
    """The positions whose loss counts.

    "target" takes the target's, "all" the source's too (as DiffuSeq's code does). Padding behind the
    target counts if `loss_on_padding`; padding of the source never does, since no model sees it.
    """
    positions = target if loss_on == "target" else target | valid
    return positions if loss_on_padding else positions & valid


def reduce(
    values: Float[Array, "b l"],
    positions: Bool[Array, "b l"],
    row_weights: Float[Array, " b"],
    total: Float[Array, ""],
) -> Float[Array, ""]:
    """Sum over the counted positions, rows weighted, divided by `total`.

    `total` is the number of counted positions of the whole batch. Given that, the values (and the
    gradients) of microbatches add up to those of the batch, however unequal their lengths.
    """
    rows = jnp.sum(jnp.where(positions, values, 0.0), axis=1)
    return jnp.sum(rows * row_weights) / jnp.maximum(total, 1.0)


def row_means(values: Float[Array, "b l"], positions: Bool[Array, "b l"]) -> Float[Array, " b"]:
    """Each row's mean over its counted positions: what a timestep sampler and a loss-by-t plot are fed."""
    count = jnp.sum(positions, axis=1).astype(jnp.float32)
    return jnp.sum(jnp.where(positions, values, 0.0), axis=1) / jnp.maximum(count, 1.0)
