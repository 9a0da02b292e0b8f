"""When a row's text is over, and there is nothing left to write in it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from dimba_jax.config import RunConfig
from dimba_jax.data.tokenizers import EOS, PAD


def text_ends(config: RunConfig) -> bool:
    """Whether EOS ends a row. It does but in packed running text, where it parts one document from the next."""
    return config.data.source != "text" or config.data.text.layout != "packed"


def may_end(tokens: Int[Array, "b l"], editable: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    """The positions behind which no given word stands: an EOS before a given word does not end the row."""
    word = ~editable & (tokens != PAD)
    behind = jnp.roll(word, -1, axis=1).at[:, -1].set(False)
    return ~_from_here_on(behind)


def words_alone(
    logits: Float[Array, "b k v"], may_end: Bool[Array, "b k"], end_bias: float = 0.0
) -> Float[Array, "b k v"]:
    """Logits without EOS and PAD where the text may not end; elsewhere those of both with `end_bias` added."""
    end = jnp.isin(jnp.arange(logits.shape[-1]), jnp.asarray([PAD, EOS]))
    if end_bias:
        logits = jnp.where(end, logits + end_bias, logits)
    return jnp.where(end & ~may_end[..., None], -jnp.inf, logits)


def still_to_write(editable: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    """The positions at or behind which some position is editable."""
    return _from_here_on(editable)


def _from_here_on(x: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    return jnp.flip(jnp.cumsum(jnp.flip(x, axis=1), axis=1), axis=1) > 0
