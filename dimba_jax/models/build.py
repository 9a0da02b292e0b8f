"""The network a run's config describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from dimba_kernels.dispatch import obstacle, target_platform
from flax import nnx

from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.models.denoiser import Denoiser
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.progress import announce


def make_denoiser(config: RunConfig, vocab_size: int, rngs: nnx.Rngs) -> Denoiser | TokenDenoiser:
    """A fresh network, for rows of the config's lengths and tokens of a tokenizer of `vocab_size`.

    Gaussian processes get a `Denoiser`, those on tokens a `TokenDenoiser`, which an autoregressive
    process tells no time.

    Raises:
      ConfigError: settings of the model that contradict each other.
    """
    if config.process.kind == "gaussian":
        return Denoiser(
            config.model,
            vocab_size=vocab_size,
            source_length=config.data.source_length,
            target_length=config.data.target_length,
            output="logits" if config.process.prediction == "logits" else "embedding",
            rngs=rngs,
        )
    return TokenDenoiser(
        config.model,
        vocab_size=vocab_size,
        source_length=config.data.source_length,
        target_length=config.data.target_length,
        time_conditioned=config.process.time_conditioning,
        conditioned=config.process.kind == "masked",
        rngs=rngs,
    )


def check_implementation(config: RunConfig) -> None:
    """Raises ConfigError if config.model.implementation cannot run here."""
    name = config.model.implementation
    if why := obstacle(name):
        if target_platform() != name:
            why = f"its kernels run on a {name.upper()}, and the platform is {target_platform()!r}"
        raise ConfigError(f"config.model.implementation={name!r}: {why}; 'auto' takes the best that can run here")


@contextmanager
def kernels_asked_for(config: RunConfig) -> Iterator[None]:
    """Inside, what the kernels of config.model.implementation do not take (too many states) is a ConfigError."""
    try:
        yield
    except NotImplementedError as error:
        raise ConfigError(f"config.model.implementation={config.model.implementation!r}: {error}") from error


def portable(config: RunConfig) -> RunConfig:
    """The config with kernels that can run here, which is said if they are others."""
    name = config.model.implementation
    if obstacle(name) is None:
        return config
    announce(f"config.model.implementation={name!r} cannot run here: 'auto' in its place")
    return replace(config, model=replace(config.model, implementation="auto"))


def abstract_denoiser(config: RunConfig, vocab_size: int) -> tuple[nnx.GraphDef, nnx.State]:
    """Its structure and the shapes of its parameters; nothing is computed."""
    return nnx.split(nnx.eval_shape(lambda: make_denoiser(config, vocab_size, nnx.Rngs(0))))
