"""The process a run's config describes."""

from __future__ import annotations

from dimba_jax.config import ProcessConfig
from dimba_jax.diffusion.autoregressive import Autoregressive, make_autoregressive
from dimba_jax.diffusion.gaussian import Gaussian, make_gaussian
from dimba_jax.diffusion.masked import Masked, make_masked

AnyProcess = Gaussian | Masked | Autoregressive


def make_process(config: ProcessConfig, vocab_size: int) -> AnyProcess:
    """The process `config.kind` names, over the tokens of a tokenizer of `vocab_size`.

    Raises:
      ConfigError: settings of the process that contradict each other.
    """
    match config.kind:
        case "gaussian":
            return make_gaussian(config)
        case "masked":
            return make_masked(config, vocab_size)
        case "autoregressive":
            return make_autoregressive(config, vocab_size)
