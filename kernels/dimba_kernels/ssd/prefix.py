"""The recurrence of states from chunk to chunk, as matmuls over blocks of chunks: log-depth and few passes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 16  # chunks joined by one matmul; longer sequences recurse over the blocks


def entering_states(added: jax.Array, log_decay: jax.Array, start: jax.Array, reverse: bool) -> jax.Array:
    """The state with which the scan enters each chunk: e_c = exp(log_decay_{c-1}) e_{c-1} + added_{c-1}.

    Args:
        added: (b, c, g, r, p, n), what each chunk adds to the state.
        log_decay: (b, c, g, r), the logarithm of how each chunk scales the state.
        start: (b, g, r, p, n), the state entering the first chunk (with `reverse`: the last).

    Returns:
        (b, c, g, r, p, n).
    """
    b, c = added.shape[:2]
    if c == 1:
        return start[:, None]
    size = min(c, BLOCK)
    blocks = -(-c // size)
    if blocks * size != c:  # chunks that neither decay nor add, on the right
        extra = (0, blocks * size - c)
        added = jnp.pad(added, [(0, 0), extra, (0, 0), (0, 0), (0, 0), (0, 0)])
        log_decay = jnp.pad(log_decay, [(0, 0), extra, (0, 0), (0, 0)])
    added = added.reshape(b * blocks, size, *added.shape[2:])
    log_decay = log_decay.reshape(b * blocks, size, *log_decay.shape[2:])

    weights, from_start = _weights(log_decay, reverse)
    entering = jnp.einsum("bgrij,bjgrpn->bigrpn", weights, added, precision=jax.lax.Precision.HIGHEST)
    if blocks > 1:
        last = 0 if reverse else -1
        block_adds = jnp.exp(log_decay[:, last])[..., None, None] * entering[:, last] + added[:, last]
        block_decay = jnp.sum(log_decay, axis=1)
        start = entering_states(
            block_adds.reshape(b, blocks, *block_adds.shape[1:]),
            block_decay.reshape(b, blocks, *block_decay.shape[1:]),
            start,
            reverse,
        ).reshape(b * blocks, *start.shape[1:])
    entering = entering + from_start[..., None, None] * start[:, None]
    return entering.reshape(b, blocks * size, *entering.shape[2:])[:, :c]


def _weights(log_decay: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """What chunk j adds reaches chunk i scaled by weights (b g r i j); the start state by from_start (b i g r)."""
    if reverse:
        weights, from_start = _weights(log_decay[:, ::-1], False)
        return weights[..., ::-1, ::-1], from_start[:, ::-1]
    size = log_decay.shape[1]
    # Sums over j < k < i are summed, not taken as a difference of cumulative sums: so small an array can be exact.
    i, j, k = (jnp.arange(size).reshape(shape) for shape in ((size, 1, 1), (1, size, 1), (1, 1, size)))
    steps = log_decay.transpose(0, 2, 3, 1)[:, :, :, None, None, :]  # b g r 1 1 k
    sums = jnp.sum(jnp.where(((j < k) & (k < i))[None, None, None], steps, 0), axis=-1)
    weights = jnp.exp(jnp.where((j < i)[None, None, None, ..., 0], sums, -jnp.inf))
    from_start = jnp.exp(jnp.sum(jnp.where((k < i)[None, None, None], steps, 0), axis=-1))  # b g r i 1
    return weights, from_start[..., 0].transpose(0, 3, 1, 2)
