"""The search for the range of times that block diffusion is best trained on (BD3-LM, arXiv 2503.09573, section 5)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dimba_jax.config import RunConfig
from dimba_jax.diffusion.masked import FULL_RANGE, Masked
from dimba_jax.diffusion.passes import PASSES, Batch, draw
from dimba_jax.diffusion.timesteps import Continuous

SEARCH_KEY = 2  # seeds the draws of every search
WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


def candidates() -> tuple[tuple[float, float], ...]:
    """The full range, and those of each width from every tenth on."""
    found = [FULL_RANGE]
    for width in WIDTHS:
        for low in np.arange(0.0, 1.0 - width + 1e-6, 0.1):
            found.append((max(round(float(low), 3), FULL_RANGE[0]), min(round(float(low) + width, 3), 1.0)))
    return tuple(found)


def search_time_range(
    graphdef: nnx.GraphDef, params: PyTree, process: Masked, batches: Sequence[Batch], config: RunConfig
) -> tuple[Masked, dict[str, float]]:
    """The process with the candidate range whose NELBO estimates vary least, and the figures to log.

    The variance is that of a row's estimate, a position, over the rows of all batches (BD3-LM, eq. 9, up to a
    factor). The draws are the same for every candidate and every search. No reported bound uses the range found.
    """
    variances = {}
    for candidate in candidates():
        moved = process.with_time_range(candidate)
        rows = [
            _row_losses(graphdef, params, moved, batch, jax.random.fold_in(jax.random.key(SEARCH_KEY), n), config)
            for n, batch in enumerate(batches)
        ]
        variances[candidate] = float(jnp.var(jnp.concatenate(rows)))
    best = min(variances, key=variances.__getitem__)
    figures = {
        "time_range/low": best[0],
        "time_range/high": best[1],
        "time_range/variance": variances[best],
        "time_range/variance_full": variances[FULL_RANGE],
    }
    return process.with_time_range(best), figures


@functools.partial(jax.jit, static_argnames=("graphdef", "config"))
def _row_losses(
    graphdef: nnx.GraphDef, params: PyTree, process: Masked, batch: Batch, key: PRNGKeyArray, config: RunConfig
) -> Float[Array, " b"]:
    """One estimate of each row's NELBO, in nats a counted position."""
    draws = draw(key, Continuous(), process, batch["tokens"].shape[0], config)
    draws = draws._replace(rows=draws.rows._replace(keep=None), dropout=None)
    found = PASSES[process.kind](graphdef, params, process, batch, draws, config)
    counts = jnp.maximum(jnp.sum(found.positions, axis=1), 1)
    return jnp.sum(jnp.where(found.positions, found.terms["nelbo"], 0.0), axis=1) / counts
