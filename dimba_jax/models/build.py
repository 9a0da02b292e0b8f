"""The network a run's config describes."""

from __future__ import annotations

from flax import nnx

from dimba_jax.config import RunConfig
from dimba_jax.models.denoiser import Denoiser


def make_denoiser(config: RunConfig, vocab_size: int, rngs: nnx.Rngs) -> Denoiser:
    """A fresh network, for rows of the config's lengths and tokens of a tokenizer of `vocab_size`.

    Raises:
      ConfigError: settings of the model that contradict each other.
    """
    return Denoiser(
        config.model,
        vocab_size=vocab_size,
        source_length=config.data.source_length,
        target_length=config.data.target_length,
        output="logits" if config.process.prediction == "logits" else "embedding",
        rngs=rngs,
    )


def abstract_denoiser(config: RunConfig, vocab_size: int) -> tuple[nnx.GraphDef, nnx.State]:
    """Its structure and the shapes of its parameters; nothing is computed."""
    return nnx.split(nnx.eval_shape(lambda: make_denoiser(config, vocab_size, nnx.Rngs(0))))
