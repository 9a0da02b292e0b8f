"""The prompt encoder. It reads the source alone: a target token cannot reach what it returns."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ModelConfig
from dimba_jax.models.embeddings import TokenTable
from dimba_jax.models.linear import Linear
from dimba_jax.models.norm import RMSNorm
from dimba_jax.models.stack import Stack


class MLPEncoder(nnx.Module):
    """A two-layer MLP on the embedding of each position."""

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.hidden = Linear(config.embedding_dim, config.d_model, config, bias=True, rngs=rngs)
        self.out = Linear(config.d_model, config.d_model, config, bias=True, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        embedded: Float[Array, "b l e"],
        mask: Bool[Array, "b l"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        return self.out(jax.nn.silu(self.hidden(embedded))).astype(jnp.float32)


class MixerEncoder(nnx.Module):
    """`config.prompt_layers` blocks of the backbone's kind, without time, and a norm."""

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.in_proj = Linear(config.embedding_dim, config.d_model, config, rngs=rngs)
        self.stack = Stack(config, config.prompt_layers, conditioned=False, rngs=rngs)
        self.norm = RMSNorm(config.d_model)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        embedded: Float[Array, "b l e"],
        mask: Bool[Array, "b l"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        return self.norm(self.stack(self.in_proj(embedded).astype(jnp.float32), mask, key=key))


class FrozenEncoder(nnx.Module):
    """A mixer encoder, with a table of its own, that no gradient reaches; a learned map follows it.

    It starts from random weights, a baseline worth having; `load` hands in trained ones. They lie in
    `frozen` by their full path, so that no leaf is called `kernel` and the optimizer decays none.
    """

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        table, encoder = TokenTable(vocab_size, config, rngs=rngs), MixerEncoder(vocab_size, config, rngs=rngs)
        self.graph, state = nnx.split((table, encoder))
        self.paths = tuple(path for path, _ in nnx.to_flat_state(state))
        self.frozen = nnx.Dict({_name(path): variable for path, variable in nnx.to_flat_state(state)})
        self.adapter = Linear(config.d_model, config.d_model, config, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        embedded: Float[Array, "b l e"],
        mask: Bool[Array, "b l"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        state = nnx.from_flat_state([(path, self.frozen[_name(path)]) for path in self.paths])
        table, encoder = nnx.merge(self.graph, state)
        own = jnp.where(mask[..., None], table()[tokens], 0.0)
        return self.adapter(jax.lax.stop_gradient(encoder(tokens, own, mask))).astype(jnp.float32)

    def load(self, weights: Mapping[str, ArrayLike]) -> None:
        """Puts outside weights in place of the random ones, all of them.

        Args:
          weights: by the names in `frozen`: "0.embedding" for the table, "1.in_proj.kernel",
            "1.stack.groups.blocks.0.mixer.in_proj.kernel" and so on for the encoder.

        Raises:
          ValueError: a weight is missing, unknown, or of another shape.
        """
        names = {_name(path) for path in self.paths}
        if names != set(weights):
            missing, unknown = sorted(names - set(weights)), sorted(set(weights) - names)
            raise ValueError(f"frozen prompt encoder: missing weights {missing}, unknown weights {unknown}")
        for name in sorted(names):
            value, expected = jnp.asarray(weights[name], jnp.float32), self.frozen[name].shape
            if value.shape != expected:
                raise ValueError(f"frozen prompt encoder: {name} has shape {value.shape}, expected {expected}")
            self.frozen[name][...] = value


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


_ENCODERS = {"mlp": MLPEncoder, "mixer": MixerEncoder, "frozen": FrozenEncoder}


class PromptEncoder(nnx.Module):
    """Features of every source position, and their mean as a vector that joins the time.

    A row without its prompt (guidance's unconditional call) has a learned vector in place of the mean.
    """

    def __init__(self, vocab_size: int, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder = _ENCODERS[config.prompt_encoder](vocab_size, config, rngs=rngs)
        self.pooled = config.pooled_prompt
        if self.pooled:
            self.pool = Linear(config.d_model, config.condition_width, config, bias=True, rngs=rngs)
            self.null = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.condition_width,)))

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        embedded: Float[Array, "b l e"],
        source: Bool[Array, "b l"],
        keep: Bool[Array, " b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b c"] | None]:
        """Features (b, l, d), and the pooled prompt (b, d) where the configuration asks for it.

        Args:
          source: the positions to read; what tokens and embeddings hold elsewhere is never looked at.
          keep: False for rows whose prompt is withheld (their `source` is False throughout).
        """
        tokens = jnp.where(source, tokens, 0)
        features = self.encoder(tokens, jnp.where(source[..., None], embedded, 0.0), source, key)
        if not self.pooled:
            return features, None
        total = jnp.sum(jnp.where(source[..., None], features, 0.0), axis=1)
        mean = total / jnp.maximum(jnp.sum(source, axis=1, keepdims=True), 1)
        pooled = self.pool(mean).astype(jnp.float32)
        return features, pooled if keep is None else jnp.where(keep[:, None], pooled, self.null[...])
