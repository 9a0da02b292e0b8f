"""A model, a batch and a config small enough to train in a test; checkpoints, and a recipe that writes some."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.stages import Wrapped
from saved_steps import save
from tiny_recipe import tiny_recipe

from dimba_jax import parallel
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import RunConfig, from_config_dict
from dimba_jax.diffusion import make_process, make_timestep_sampler
from dimba_jax.models.build import make_denoiser
from dimba_jax.models.denoiser import Denoiser
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.state import TrainState
from dimba_jax.training.step import make_train_step

VOCAB, SOURCE, TARGET, ROWS = 11, 4, 5, 8


def tiny_config(**groups: dict[str, Any]) -> RunConfig:
    values: dict[str, dict[str, Any]] = {
        "data": {"source_length": SOURCE, "target_length": TARGET},
        "model": {"embedding_dim": 8, "d_model": 16, "layers": 1, "pattern": ("attention",), "head_dim": 8},
        "process": {"timesteps": 20},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "ema_decay": 0.15, "schedule": "constant"},
        "training": {"steps": 200, "batch_size": ROWS},
        "sampling": {"steps": 2},
    }
    for name, settings in groups.items():
        values[name] = values.get(name, {}) | settings
    return from_config_dict(values)


def tiny_batch(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows whose targets have unequal lengths, long ones together, so that microbatches differ in size."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, VOCAB, (rows, SOURCE + TARGET)).astype(np.int32)
    target = np.broadcast_to(np.arange(SOURCE + TARGET) >= SOURCE, tokens.shape).copy()
    lengths = 1 + np.arange(rows) * TARGET // rows
    valid = np.arange(SOURCE + TARGET) < SOURCE + lengths[:, None]
    valid[0, 2:SOURCE] = False
    return {"tokens": np.where(valid, tokens, 0), "target": target, "valid": valid}


@dataclasses.dataclass
class Parts:
    """A state before its first step and what moves it on; compiled once for all tests of a config."""

    config: RunConfig
    graphdef: nnx.GraphDef
    state: TrainState
    step: Wrapped

    def run(self, steps: int, key: jax.Array, state: TrainState | None = None) -> tuple[TrainState, list[float]]:
        """The state and the losses after some steps on one batch."""
        state = jax.tree.map(jnp.copy, self.state if state is None else state)  # a step donates its argument
        losses = []
        for _ in range(steps):
            state, report = self.step(state, tiny_batch(), key)
            losses.append(float(report.loss))
        return state, losses


@functools.cache
def parts_of(config: RunConfig) -> Parts:
    def build() -> Denoiser | TokenDenoiser:
        return make_denoiser(config, VOCAB, nnx.Rngs(0))

    graphdef, _ = nnx.split(nnx.eval_shape(build))
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(build())))()
    state = TrainState.start(
        params, optimizer, make_process(config.process, VOCAB), make_timestep_sampler(config.process)
    )
    return Parts(config, graphdef, state, make_train_step(graphdef, optimizer, config))


@pytest.fixture
def parts():
    return parts_of


@pytest.fixture
def configs():
    return tiny_config


@pytest.fixture
def batches():
    return tiny_batch


@pytest.fixture
def base_key() -> jax.Array:
    return jax.random.key(5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with steps 1 and 2."""
    folder = tmp_path_factory.mktemp("written")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            save(checkpoints, step)
    return folder


@pytest.fixture
def workdir(written, tmp_path):
    """One with steps 1 and 2, to be changed."""
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def recipe(tmp_path, write_pairs, monkeypatch):
    """The file of a recipe of 15 steps, three checkpoints among them, on one device."""
    make = parallel.make_mesh
    monkeypatch.setattr(parallel, "make_mesh", lambda config: make(config, jax.devices()[:1]))
    write_pairs(tmp_path, 8)
    path = tmp_path / "recipe.py"
    path.write_text(
        tiny_recipe(tmp_path, training={"steps": 15, "log_every": 5, "checkpoint_every": 5, "valid_batches": 1})
    )
    return path
