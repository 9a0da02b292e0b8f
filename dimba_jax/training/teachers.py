"""The trained networks that a run learns from (config.training.teachers)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from dimba_jax import parallel
from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.data.tokenizers import Tokenizer
from dimba_jax.diffusion.passes import Teacher
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.progress import announce
from dimba_jax.sampling.ensemble import check_alike
from dimba_jax.sampling.load import LoadedModel, load


class Taught(NamedTuple):
    """Teachers, and what tells them from others: `{"steps": of their checkpoints, "digest": of their parameters}`."""

    teacher: Teacher | None
    by: dict[str, Any] | None


def workdirs(config: RunConfig) -> list[str]:
    """The teachers' workdirs; their names have no commas."""
    return [path.strip() for path in config.training.teachers.split(",") if path.strip()]


def load_teachers(
    config: RunConfig, tokenizer: Tokenizer, mesh: Mesh, workdir: Path, before: Mapping[str, Any] | None = None
) -> Taught:
    """The teachers, averaged parameters if their configs sample with them, split over the mesh; nothing without any.

    Args:
      workdir: of the run that learns.
      before: what the run has learned from up to now (`Taught.by`): then it is that again, from wherever it lies. None
        takes the latest checkpoints.

    Raises:
      ConfigError: a teacher is named twice, is the run itself, has no checkpoint, does not read and write what this run
        does, or is not what was learned from before.
      CheckpointError: a damaged one.
    """
    paths = workdirs(config)
    if not paths:
        return Taught(None, None)
    named = f"config.training.teachers={config.training.teachers!r}"
    places = [Path(path).resolve() for path in paths]
    if len(set(places)) < len(places):
        raise ConfigError(f"{named}: one is named twice")
    if workdir.resolve() in places:
        raise ConfigError(f"{named}: one is the workdir of this run, which cannot learn from itself")
    steps = [None] * len(paths) if before is None else before["steps"]
    if len(steps) != len(paths):
        raise ConfigError(f"{named}: this run has learned from {len(steps)} teachers up to now, name those")
    networks, taken = [], []
    for path, step in zip(paths, steps, strict=True):
        try:
            model = load(path, step=step)
        except FileNotFoundError as error:
            raise ConfigError(f"config.training.teachers: {error}") from error
        check_alike(model, path, config, tokenizer, "this run")
        announce(f"learning from {path}, step {model.step:,} of {model.config.training.steps:,}")
        networks.append(_on_host(model))
        taken.append(model.step)
    graph, state = nnx.split(Ensemble(networks))
    params = nnx.to_pure_dict(state)
    by = {"steps": taken, "digest": _digest(params)}
    if before is not None and by["digest"] != before["digest"]:
        raise ConfigError(f"{named}: these are not the networks that this run has learned from up to now")
    return Taught(Teacher(jax.device_put(params, parallel.placement(mesh, params)), graph), by)


def _on_host(model: LoadedModel) -> Any:
    """The network without its arrays on a device, which may have no room for the whole of several."""
    graph, state = nnx.split(model.denoiser)
    return nnx.merge(graph, jax.tree.map(np.asarray, state))


def _digest(params: PyTree) -> int:
    check = 0
    for leaf in jax.tree.leaves(params):
        check = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), check)
    return check
