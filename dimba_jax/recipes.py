"""What the files in `configs/` have in common: the choice of a variant, and the version for a small CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dimba_jax.config import ConfigError, RunConfig, to_config_dict

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def choose(arg: str, variants: Mapping[str, RunConfig]) -> ConfigDict:
    """The variant that `--config=FILE.py:ARG` names, as a locked ConfigDict; "" is the recipe without a colon.

    Raises:
      ConfigError: there is no such variant; the message lists those there are.
    """
    if arg not in variants:
        known = ", ".join(f":{name}" for name in variants if name) or "none"
        raise ConfigError(f"this recipe has no variant ':{arg}'; choose one of {known}, or leave the colon out")
    return to_config_dict(variants[arg])


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe, narrow and short: about two minutes of training on 2 CPU cores.

    What makes the recipe what it is (data, mixers, conditioning, process, loss) stays. It shows that
    everything runs; its samples are not worth reading.
    """
    steps = 300
    return replace(
        config,
        name=f"{config.name}_smoke",
        tokenizer=replace(config.tokenizer, vocab_size=2048),
        model=replace(
            config.model, embedding_dim=32, d_model=64, layers=2, state_dim=16, head_dim=32, prompt_layers=1,
            dtype="float32", remat="none",
        ),
        optimizer=replace(config.optimizer, learning_rate=2e-3, warmup_steps=20, ema_decay=0.98),
        training=replace(
            config.training, steps=steps, batch_size=32, accumulate=1, log_every=20, checkpoint_every=steps,
            valid_every=0, valid_batches=2, sample_every=0,
        ),
        sampling=replace(config.sampling, steps=10, batch_size=64),
    )  # fmt: skip
