"""The token embeddings, the space the diffusion lives in, and the way back to tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from dimba_kernels.ssd.matmul import matmul
from flax import nnx
from jaxtyping import Array, Float

from dimba_jax.config import ModelConfig


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
        x = (x * jnp.exp(self.log_scale[...])).astype(self.dtype)
        return matmul("ble,ve->blv", x, table.astype(self.dtype)) + self.bias[...]


class UntiedRounding(nnx.Module):
    """Logits from an embedding by a matrix of their own."""

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.linear = OutputLinear(config.embedding_dim, vocab_size, config, rngs=rngs)

    def __call__(self, x: Float[Array, "b l e"], table: Float[Array, "v e"]) -> Float[Array, "b l v"]:
        return self.linear(x)


class OutputLinear(nnx.Module):
    """x kernel + bias. Operands may be bfloat16, in the backward pass too; sums and results are float32."""

    def __init__(self, inputs: int, outputs: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = jnp.dtype(config.dtype)

    def __call__(self, x: Float[Array, "b l i"]) -> Float[Array, "b l o"]:
        return matmul("bli,io->blo", x.astype(self.dtype), self.kernel[...].astype(self.dtype)) + self.bias[...]
