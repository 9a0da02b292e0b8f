"""A masked model on one row: its bound from a given number of masks, and whether decoding gives the row back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dimba_jax.diffusion.masked import log_loss
from dimba_jax.diffusion.objective import counted as counted_positions

Row = dict[str, Array]  # tokens, target and valid, each (1, l)


def mask_counts(length: int, draws: int, seed: int) -> Int[np.ndarray, " draws"]:
    """Numbers of masks from 1 to `length`, stratified over the draws, each number equally likely."""
    place = (np.arange(draws) + np.random.default_rng(seed).random()) / draws
    return np.minimum(np.floor(place * length).astype(np.int32) + 1, length)


def count_nll(
    denoiser: Any,
    process: Any,
    row: Row,
    counts: Int[Array, " n"],
    keys: PRNGKeyArray,
    *,
    source: int = 0,
    on_padding: bool = True,
) -> Float[Array, " n"]:
    """Draws of the bound on -log p of a row's target, in nats, from `counts` masks among its l target positions.

    (l / k) times the log-loss of the k masked tokens: the bound of masked diffusion, its integral over t done
    (as LLaDA, arXiv 2502.09992, evaluates), or that of predicting the tokens in any order. It varies less than
    draws of t do, since the weight always fits the number of masks: a uniform model has no variance at all. A
    network with time is told that at which training would mask as large a share of what it may mask.

    Args:
      keys: of the places of the masks, one for each draw.
      source: positions in front of the target of a pair.
      on_padding: whether padding behind the target counts.
    """
    tokens, target, valid = row["tokens"], row["target"], row["valid"]
    places = jax.vmap(lambda key: jax.random.uniform(key, target.shape[1:]))(keys)
    rank = jnp.argsort(jnp.argsort(jnp.where(target, places, jnp.inf), axis=1), axis=1)
    masked = target & (rank < counts[:, None])
    t = process.network_time(process.time_of(counts / jnp.sum(_maskable(row, source))))
    visible = jnp.broadcast_to(target | valid, masked.shape)
    logits = denoiser(jnp.where(masked, process.mask_id, tokens), t, visible=visible, first=source)
    nats = log_loss(logits, jnp.broadcast_to(tokens, masked.shape)[:, source:])
    scored = (masked & counted_positions(target, valid, "target", on_padding))[:, source:]
    return jnp.sum(target) / counts * jnp.sum(jnp.where(scored, nats, 0.0), axis=1)


def _maskable(row: Row, source: int) -> Bool[Array, "1 k"]:
    """What training may mask: all of a text, so that one behind a context never looks wholly masked."""
    return row["target"][:, source:] if source else row["valid"]


def would_write(
    denoiser: Any, process: Any, row: Row, counted: Bool[Array, " l"], source: int, size: int
) -> Bool[Array, ""]:
    """Whether decoding a row's target from masks, the surest first, gives the counted tokens.

    With blocks of `size` each is decoded behind the true ones before it, all side by side.
    """
    truth, target, valid = (row[name] for name in ("tokens", "target", "valid"))
    visible, free = target | valid, target[:, source:]
    blocks = free.shape[1] // size if size else 1
    share_of = jnp.maximum(_maskable(row, source).reshape(blocks, -1).sum(axis=1), 1)

    def logits_of(tokens: Int[Array, "1 l"], masked: Bool[Array, "1 k"]) -> Float[Array, "1 k v"]:
        t = process.network_time(process.time_of(masked.reshape(blocks, -1).sum(axis=1) / share_of))
        if not size:
            return denoiser(tokens, t, visible=visible, first=source)
        return denoiser.two_streams(tokens, truth, t[None], visible=visible, block_size=size, first=source)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tokens, masked, right = carry
        logp = jax.nn.log_softmax(logits_of(tokens, masked), axis=-1)
        sure = jnp.where(masked, jnp.max(logp, axis=-1), -jnp.inf).reshape(blocks, -1)
        first = sure == jnp.max(sure, axis=1, keepdims=True)
        chosen = masked & (first & (jnp.cumsum(first, axis=1) == 1)).reshape(1, -1)
        best = jnp.argmax(logp, axis=-1).astype(tokens.dtype)
        wrong = chosen & counted[None, source:] & (best != truth[:, source:])
        target_tokens = jnp.where(chosen, best, tokens[:, source:])
        return jnp.concatenate([tokens[:, :source], target_tokens], axis=1), masked & ~chosen, right & ~jnp.any(wrong)

    tokens = jnp.where(target, process.mask_id, truth)
    _, _, right = jax.lax.while_loop(lambda carry: jnp.any(carry[1]) & carry[2], step, (tokens, free, jnp.bool_(True)))
    return right
