"""Compiled training steps of recipes on random tokens, for measurements: no data, no tokenizer, no run folder."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

import jax
import numpy as np
from recipe_files import recipe

from dimba_jax import parallel
from dimba_jax.config import MeshConfig, RunConfig
from dimba_jax.models.build import abstract_denoiser
from dimba_jax.training.figures import flops_per_row
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.setup import fresh_state
from dimba_jax.training.step import make_train_step

SPECIAL = 8  # tokens left out of the random text: padding, mask and their like


@dataclass(frozen=True)
class Case:
    """A recipe and its variant; rows a batch, positions a row and layers, None for the recipe's own."""

    recipe: str
    variant: str = ""
    rows: int | None = None
    length: int | None = None
    layers: int | None = None

    def config(self, implementation: str) -> RunConfig:
        module = recipe(self.recipe)
        config: RunConfig = getattr(module, "VARIANTS", {}).get(self.variant) or module.MEDIUM
        config = replace(config, model=replace(config.model, implementation=implementation))
        if self.rows is not None:
            config = replace(config, training=replace(config.training, batch_size=self.rows))
        if self.length is not None:
            config = replace(config, data=replace(config.data, target_length=self.length))
        if self.layers is not None:
            config = replace(config, model=replace(config.model, layers=self.layers))
        return config


class Step:
    """A compiled step of dimba_jax.train and the state it goes on from, on the devices of a mesh."""

    def __init__(self, config: RunConfig, devices: int = 1, mesh: MeshConfig | None = None) -> None:
        vocabulary = config.tokenizer.vocab_size
        rows, length = config.training.batch_size, config.data.source_length + config.data.target_length
        graphdef, _ = abstract_denoiser(config, vocabulary)
        optimizer = make_optimizer(config.optimizer, config.training.steps)
        self.mesh = parallel.make_mesh(mesh or MeshConfig(), jax.devices()[:devices])

        start = fresh_state(config, vocabulary, optimizer)
        self.tokens = rows * length
        where = parallel.placement(self.mesh, jax.eval_shape(start, jax.random.key(0)))
        self._state = jax.jit(start, out_shardings=where)(jax.random.key(0))
        self._batch = parallel.shard_batch(self.mesh, _batch(rows, length, config.data.source_length, vocabulary))
        self._key = jax.random.key(1)
        began = time.monotonic()
        with ExitStack() as stack:
            if devices > 1:
                stack.enter_context(parallel.split_kernels(self.mesh))
            step = make_train_step(graphdef, optimizer, config, where)
            self.program = step.lower(self._state, self._batch, self._key).compile()
        self.compile_seconds = time.monotonic() - began
        plan = self.program.memory_analysis()
        sizes = plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes
        self.peak_bytes = sum(sizes) - plan.alias_size_in_bytes
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        tied = self._state.params["table"].size if config.model.head == "tied" and "table" in self._state.params else 0
        self.flops = rows * flops_per_row(
            self._state.params, source=config.data.source_length, backbone=length,
            head=config.data.target_length, tied=tied,
        )  # fmt: skip
        self.first_loss = self.run(1)[1]

    def run(self, steps: int) -> tuple[float, float]:
        """Milliseconds a step, and the last loss."""
        began = time.perf_counter()
        for _ in range(steps):
            self._state, report = self.program(self._state, self._batch, self._key)
        loss = float(report.loss)
        return 1e3 * (time.perf_counter() - began) / steps, loss


def _batch(rows: int, length: int, source: int, vocabulary: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(min(SPECIAL, vocabulary // 2), vocabulary, (rows, length)).astype(np.int32),
        "target": np.broadcast_to(np.arange(length) >= source, (rows, length)).copy(),
        "valid": np.ones((rows, length), bool),
    }
