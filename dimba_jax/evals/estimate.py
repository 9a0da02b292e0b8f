"""The log-loss of rows under a model: exact in one pass, or the mean of draws of a bound, with its standard error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.diffusion.likelihood import nll
from dimba_jax.diffusion.process import Process
from dimba_jax.evals.texts import Positions
from dimba_jax.progress import progress
from dimba_jax.sampling.load import LoadedModel

EXACT = "autoregressive"  # the process whose log-loss takes no draws


@dataclass(frozen=True)
class Estimate:
    """-log p of all rows together in nats, or the mean of draws of an upper bound on it."""

    nats: float
    standard_error: float | None  # of the draws, not of the choice of text; 0 if exact, None of a single draw
    draws: int  # of every row
    exact: bool


class Estimator:
    """Scores rows under a model; compiled once for all rows of one shape.

    Args:
      block_size: in place of the model's own; 0 is the whole row at once, None the model's own.

    Raises:
      ConfigError: a block size that the model cannot be scored at.
    """

    def __init__(self, model: LoadedModel, block_size: int | None = None):
        config = with_block_size(model.config, block_size)
        graphdef, params = nnx.split(model.denoiser)
        self.exact = config.process.kind == EXACT

        @jax.jit
        def score(params: PyTree, process: Process, batch: dict[str, jax.Array], key: PRNGKeyArray) -> jax.Array:
            return nll(graphdef, params, process, batch, key, config)

        self._score = lambda batch, key: np.asarray(score(params, model.process, batch, key), np.float64)

    def __call__(
        self, rows: Positions, *, draws: int, seed: int = 0, batch_size: int = 32, show_progress: bool = False
    ) -> Estimate:
        """Scores rows, each `draws` times (once if the model's likelihood is exact).

        A draw takes times and masks anew; times are stratified over the rows of a batch and their blocks.
        Draws of a batch are independent, and so are batches: the variance of the total is the sum of theirs.
        The result is a function of the arguments; a common seed makes two models comparable.

        Args:
          rows: tokens, target and valid, each (rows, l).

        Raises:
          ConfigError: a model without a likelihood.
        """
        draws = 1 if self.exact else draws
        total = len(rows["tokens"])
        key = jax.random.key(seed)
        sums = []
        with progress(total * draws, "likelihood", enabled=show_progress) as shown:
            for number, (batch, real) in enumerate(_batches(rows, min(batch_size, total))):
                keys = jax.random.split(jax.random.fold_in(key, number), draws)
                sums.append([float(self._score(batch, of_draw)[:real].sum()) for of_draw in keys])
                shown.update(real * draws)
        found = np.asarray(sums)  # (batches, draws)
        error = None
        if self.exact:
            error = 0.0
        elif draws > 1:
            error = math.sqrt(float(found.var(axis=1, ddof=1).sum()) / draws)
        return Estimate(float(found.mean(axis=1).sum()), error, draws, self.exact)


def with_block_size(config: RunConfig, block_size: int | None) -> RunConfig:
    """The config for scoring at another block size; as it is for None.

    Raises:
      ConfigError: blocks for a model that is not masked, or of a size that does not divide the rows.
    """
    if block_size is None or block_size == config.process.block_size:
        return config
    length = config.data.target_length
    if config.process.kind != "masked":
        raise ConfigError(
            f"block size {block_size}: only masked models are scored in blocks, this one is {config.process.kind!r}"
        )
    if block_size and length % block_size:
        sizes = ", ".join(str(size) for size in range(1, length + 1) if length % size == 0)
        raise ConfigError(
            f"block size {block_size} does not divide the {length} positions of a row: take one of {sizes}"
        )
    return dataclasses.replace(config, process=dataclasses.replace(config.process, block_size=block_size))


def _batches(rows: Positions, size: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """Batches of one shape and how many rows of each are to be counted: the last is filled up from the first rows."""
    total = len(rows["tokens"])
    for start in range(0, total, size):
        at = np.arange(start, start + size) % total
        yield {name: jnp.asarray(values[at]) for name, values in rows.items()}, min(size, total - start)
