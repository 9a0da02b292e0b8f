"""A model, a batch and a config small enough to train in a test."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.stages import Wrapped

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
