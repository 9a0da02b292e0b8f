"""The trained networks that a run learns from (config.training.teachers)."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dimba_jax import parallel
from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.data.tokenizers import Tokenizer
from dimba_jax.diffusion.passes import Teacher
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.sampling.ensemble import check_alike
from dimba_jax.sampling.load import load


def workdirs(config: RunConfig) -> list[str]:
    """The teachers' workdirs."""
    return [path.strip() for path in config.training.teachers.split(",") if path.strip()]


def load_teachers(config: RunConfig, tokenizer: Tokenizer, mesh: Mesh) -> Teacher | None:
    """The latest checkpoints of the teachers, averaged parameters if their configs sample with them; None without any.

    Raises:
      ConfigError: one is named twice, has no checkpoint, or does not read and write what this run does.
      CheckpointError: a damaged one.
    """
    paths = workdirs(config)
    if not paths:
        return None
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError(f"config.training.teachers={config.training.teachers!r}: one is named twice")
    loaded = []
    for path in paths:
        try:
            loaded.append(load(path))
        except FileNotFoundError as error:
            raise ConfigError(f"config.training.teachers: {error}") from error
        check_alike(loaded[-1], path, config, tokenizer, "this run")
    graph, state = nnx.split(Ensemble([model.denoiser for model in loaded]))
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(state))
    return Teacher(jax.device_put(params, parallel.placement(mesh, params)), graph)
