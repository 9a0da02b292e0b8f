"""How far Fast-dLLM's cached calls are from the passes over the whole row that they stand for."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Int, PRNGKeyArray

from dimba_jax.config import RunConfig, SamplingConfig
from dimba_jax.diffusion.masked import Masked
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.sampling.discrete.fast import CacheKind, block_network, fast_blocks, rows_of, sample_fast
from dimba_jax.sampling.discrete.guidance import hides_source
from dimba_jax.sampling.discrete.unmasking import Unmasker, make_unmasker
from dimba_jax.sampling.discrete.windows import part


def cache_deviation(
    denoiser: TokenDenoiser,
    process: Masked,
    tokens: Int[Array, "b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    settings: SamplingConfig,
    *,
    config: RunConfig,
) -> dict[str, float]:
    """Samples with the cache, goes through the same states once more and compares each window with a whole pass.

    Both are run on the states that the cached sampling came through, so this is the error of single calls, not
    how far two samples drift apart. Compared are the logits of all v tokens at the positions still masked, in
    every call but a block's first (which is a pass over the row).

    Returns:
      max_difference, mean_difference: of |cached - whole| in logits (under guidance: log-probabilities);
      argmax_changed: share of the compared positions whose most probable token is another; compared: their
      number; full_calls, window_calls, positions: of the sampling run. The differences are 0 if nothing was compared.

    Raises:
      As `sample_fast`, whose arguments these are.
    """
    size, blocks = fast_blocks(denoiser, tokens.shape[1], settings, config)
    steps = settings.steps
    run = functools.partial(sample_fast, denoiser, process, tokens, editable, visible, keys, settings, config=config)
    sample = run(stages=blocks * steps + 1)
    graph, parameters = nnx.split(denoiser)
    compare = _compare_sized if settings.cache == "prefix" else _compare_anywhere
    greatest, total, changed, compared = 0.0, 0.0, 0, 0
    for k in range(blocks):
        start = denoiser.source_length + k * size
        found = compare(
            graph, parameters, process, make_unmasker(settings), sample.trajectory[k * steps : (k + 1) * steps],
            editable, visible, start, size, settings.guidance, hides_source(config), settings.cache,
        )  # fmt: skip
        worst, difference, flips, count = (np.asarray(x, np.float64) for x in found)
        greatest = max(greatest, float(worst.max(initial=0.0)))
        total, changed, compared = total + difference.sum(), changed + flips.sum(), compared + count.sum()
    windows = int(sample.window_calls)
    return {
        "max_difference": greatest,
        "mean_difference": float(total / max(compared * denoiser.vocab_size, 1)),
        "argmax_changed": float(changed / max(compared, 1)),
        "compared": int(compared),
        "full_calls": int(sample.network_calls) - windows,
        "window_calls": windows,
        "positions": int(sample.positions),
    }


def _compare(
    graph: Any,
    parameters: Any,
    process: Masked,
    stepper: Unmasker,
    states: Int[Array, "steps b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    start: Int[Array, ""] | int,
    size: int,
    guidance: float,
    hide: bool,
    cache: CacheKind,
) -> tuple[Array, Array, Array, Array]:
    """Of each step of a block but the first: the greatest and the summed difference, changed argmaxes, positions."""
    denoiser: TokenDenoiser = merge_prepared(graph, parameters, states.shape[1] * size)
    views = rows_of(denoiser, editable, visible, guidance, hide)
    network = functools.partial(block_network, denoiser, process, views, states[0], start, size)
    cached, whole = network(cache), network("none")
    clock = jnp.asarray(stepper.times(len(states)))
    room = jnp.maximum(jnp.sum(part(visible, start, size), axis=1), 1)
    free = part(states[0], start, size) == process.mask_id

    def compare(j: Int[Array, ""]) -> tuple[Array, Array, Array, Array]:
        x = part(states[j], start, size)
        masked = x == process.mask_id
        # the times that `unmask` told the network
        share = jnp.sum(masked if stepper.counts else free * (1.0 - process.alpha(clock[j])), axis=1) / room
        t = process.network_time(process.time_of(share))
        one, other = cached(x, t), whole(x, t)
        difference = jnp.where(masked[..., None], jnp.abs(one - other), 0.0)
        flips = masked & (jnp.argmax(one, axis=-1) != jnp.argmax(other, axis=-1))
        return jnp.max(difference), jnp.sum(difference), jnp.sum(flips), jnp.sum(masked)

    return jax.lax.map(compare, jnp.arange(1, len(states)))


_STATIC = ("graph", "stepper", "size", "guidance", "hide", "cache")
_compare_anywhere = jax.jit(_compare, static_argnames=_STATIC)
_compare_sized = jax.jit(_compare, static_argnames=(*_STATIC, "start"))  # the prefix cache's windows differ in size
