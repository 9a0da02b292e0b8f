"""Learned embeddings of the positions of a row, for networks whose mixers know order alone.

A scan can count the positions it has passed only in what its state has kept; that is all that a state-space layer has
to tell one masked position from the next. BERT has such embeddings (arXiv 1810.04805, section 3), and with it
DiffuSeq's network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dimba_jax.config import ModelConfig
from dimba_jax.models.embeddings import SMALL_STD


def learned_positions(config: ModelConfig, length: int, rngs: nnx.Rngs) -> nnx.Param | None:
    """(length, d) vectors, one a position, or None if the config has none."""
    if config.positions == "none":
        return None
    return nnx.Param(SMALL_STD * jax.random.normal(rngs.params(), (length, config.d_model)))


def at_positions(positions: nnx.Param, start: int | Int[Array, ""], count: int) -> Float[Array, "count d"]:
    """Those of [start, start + count), float32; NaN behind the last one, so that an overrun is seen."""
    found = jnp.take(positions[...], start + jnp.arange(count), axis=0, mode="fill", fill_value=jnp.nan)
    return found.astype(jnp.float32)
