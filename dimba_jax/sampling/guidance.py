"""Classifier-free guidance (Ho & Salimans 2022): two calls of the network a step, with and without the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from dimba_jax.diffusion.predict import Network


class GuidedNetwork(NamedTuple):
    """`call(z, t, self_condition, target)` gives the network's output for a fixed source, at `calls` network calls.

    `target` are the positions that are still diffused; None: all that were.
    """

    call: Callable[[Array, Array, Array | None, Array | None], Array]
    calls: int


def guide(conditional: Array, unconditional: Array, scale: float) -> Array:
    """unconditional + scale (conditional - unconditional); scale 1 is the conditional one.

    Outputs of a network for x0, v and epsilon are affine in x0 given z and t, so combining them is
    combining the estimates of x0; logits combine as log-probabilities do.
    """
    return unconditional + scale * (conditional - unconditional)


def guided_network(
    denoiser: Network,
    tokens: Int[Array, "b l"],
    target: Bool[Array, "b l"],
    valid: Bool[Array, "b l"],
    scale: float,
) -> GuidedNetwork:
    """Encodes the source once, and the null condition too unless the scale is 1."""
    conditions = [denoiser.encode(tokens, target, valid)]
    if scale != 1.0:
        conditions.append(denoiser.encode(tokens, target, valid, keep=jnp.zeros(tokens.shape[0], bool)))

    def call(
        z: Float[Array, "b l e"],
        t: Float[Array, " b"],
        x0: Float[Array, "b l e"] | None,
        still: Bool[Array, "b l"] | None = None,
    ) -> Array:
        found = [
            denoiser(z, t, one if still is None else denoiser.narrowed(one, still), self_condition=x0)
            for one in conditions
        ]
        return found[0] if scale == 1.0 else guide(found[0], found[1], scale)

    return GuidedNetwork(call, len(conditions))
