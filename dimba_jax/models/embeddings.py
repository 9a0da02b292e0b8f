"""The token embeddings, the space the diffusion lives in, and the way back to tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dimba_jax.config import ModelConfig
from dimba_jax.models.linear import Linear, contract

SMALL_STD = 0.02  # of fresh embeddings that join others, or that a tied head reads: its logits start small


class TokenTable(nnx.Module):
    """The embedding table, drawn from N(0, 1): the scale of the noise.

    With `config.normalize_embeddings` every row is rescaled to a mean square of 1, so that a learned
    table can neither collapse nor outgrow the noise, and the nearest row is the one of largest dot product.
    """

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocab_size, config.embedding_dim)))
        self.normalize = config.normalize_embeddings

    def __call__(self) -> Float[Array, "v e"]:
        table = self.embedding[...]
        if self.normalize:
            table = table * jax.lax.rsqrt(jnp.mean(table * table, axis=-1, keepdims=True) + 1e-8)
        return table


class TiedRounding(nnx.Module):
    """Logits from an embedding: scale * <x, row> + bias, the scale learned from 1/sqrt(e)."""

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.log_scale = nnx.Param(jnp.log(config.embedding_dim**-0.5) * jnp.ones(()))
        self.bias = nnx.Param(jnp.zeros(vocab_size))
        self.dtype = jnp.dtype(config.dtype)

    def __call__(self, x: Float[Array, "b l e"], table: Float[Array, "v e"]) -> Float[Array, "b l v"]:
        x = x * jnp.exp(self.log_scale[...])
        return contract(x, table.T, self.dtype, exact=True) + self.bias[...]


class UntiedRounding(nnx.Module):
    """Logits from an embedding by a matrix of their own."""

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.linear = Linear(config.embedding_dim, vocab_size, config, bias=True, exact=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b l e"], table: Float[Array, "v e"]) -> Float[Array, "b l v"]:
        return self.linear(x)
