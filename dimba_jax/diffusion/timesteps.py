"""How training draws times: on the grid {1..T}/T or from (0, 1], with a weight that keeps the loss unbiased."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from dimba_jax.config import ProcessConfig

HISTORY = 10  # losses remembered in each bin
UNIFORM_MIX = 0.001


class TimestepSampler(Protocol):
    """Draws times for a whole (global) batch; a registered pytree, so it lives in the training state."""

    def draw(self, key: PRNGKeyArray, rows: int) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Times in (0, 1] and the weight of each row's loss, whose expectation is 1."""
        ...

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Self:
        """The sampler after having seen the rows' unweighted losses."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Uniform:
    """Every row's time on its own, uniform on the grid."""

    timesteps: int = field(metadata={"static": True})

    def draw(self, key: PRNGKeyArray, rows: int) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        index = jax.random.randint(key, (rows,), 1, self.timesteps + 1)
        return index.astype(jnp.float32) / self.timesteps, jnp.ones(rows, jnp.float32)

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Uniform:
        return self


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stratified:
    """One shared offset, evenly spaced over the whole batch (Kingma et al. 2021, appendix I.1).

    The times are dealt to the rows in random order, so that they do not follow the rows' places.
    """

    timesteps: int = field(metadata={"static": True})

    def draw(self, key: PRNGKeyArray, rows: int) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        offset_key, order_key = jax.random.split(key)
        place = (jnp.arange(rows, dtype=jnp.float32) / rows + jax.random.uniform(offset_key)) % 1.0
        index = jnp.minimum((place * self.timesteps).astype(jnp.int32), self.timesteps - 1) + 1
        index = jax.random.permutation(order_key, index)
        return index.astype(jnp.float32) / self.timesteps, jnp.ones(rows, jnp.float32)

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Stratified:
        return self


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSecondMoment:
    """p(t) in proportion to sqrt(E[loss^2]), weight 1 / (T p(t)) (Nichol & Dhariwal 2021, eq. 18).

    The second moment is a mean over the last HISTORY losses of a bin of neighbouring times. Drawing is
    uniform until every bin has that many; a share of UNIFORM_MIX stays uniform.
    """

    history: Float[Array, "bins kept"]
    seen: Int[Array, " bins"]
    timesteps: int = field(metadata={"static": True})

    @classmethod
    def start(cls, timesteps: int, bins: int = 100) -> LossSecondMoment:
        bins = min(bins, timesteps)
        return cls(jnp.zeros((bins, HISTORY), jnp.float32), jnp.zeros(bins, jnp.int32), timesteps)

    def probabilities(self) -> Float[Array, " T"]:
        """p over the grid times 1/T..1."""
        moment = jnp.sqrt(jnp.mean(jnp.square(self.history), axis=1))
        moment = jnp.where(jnp.min(self.seen) >= HISTORY, moment, jnp.ones_like(moment))
        share = moment[self._bin(jnp.arange(1, self.timesteps + 1))]
        whole = jnp.sum(share)
        even = 1.0 / self.timesteps
        share = jnp.where(whole > 0.0, share / jnp.maximum(whole, 1e-30), even)
        return (1.0 - UNIFORM_MIX) * share + UNIFORM_MIX * even

    def draw(self, key: PRNGKeyArray, rows: int) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        p = self.probabilities()
        below = jnp.cumsum(p)
        place = jax.random.uniform(key, (rows,)) * below[-1]
        index = jnp.minimum(jnp.searchsorted(below, place, side="right"), self.timesteps - 1)
        return (index + 1).astype(jnp.float32) / self.timesteps, 1.0 / (self.timesteps * p[index])

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> LossSecondMoment:
        bins = self.seen.shape[0]
        index = self._bin(jnp.round(t * self.timesteps).astype(jnp.int32))
        own = jax.nn.one_hot(index, bins, dtype=jnp.int32)
        rank = jnp.sum((jnp.cumsum(own, axis=0) - own) * own, axis=1)  # rows of the same bin before this one
        rows = jnp.sum(own, axis=0)
        slot = (self.seen[index] + rank) % HISTORY
        # of more than HISTORY rows in one bin the last ones stay: two writes to one slot would be a race
        stays = rank >= rows[index] - HISTORY
        history = self.history.at[jnp.where(stays, index, bins), slot].set(loss.astype(jnp.float32), mode="drop")
        # the ring's position matters modulo HISTORY only; folding it back keeps the count from overflowing
        seen = self.seen + rows
        seen = jnp.where(seen >= 2 * HISTORY, HISTORY + seen % HISTORY, seen)
        return LossSecondMoment(history, seen, self.timesteps)

    def _bin(self, index: Int[Array, " b"]) -> Int[Array, " b"]:
        return (index - 1) * self.seen.shape[0] // self.timesteps


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Continuous:
    """Times from (0, 1], not from a grid: stratified over the whole batch, in random order, or each on its own."""

    stratified: bool = field(default=True, metadata={"static": True})

    def draw(self, key: PRNGKeyArray, rows: int) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        offset_key, order_key = jax.random.split(key)
        if self.stratified:
            place = (jnp.arange(rows, dtype=jnp.float32) / rows + jax.random.uniform(offset_key)) % 1.0
            place = jax.random.permutation(order_key, place)
        else:
            place = jax.random.uniform(offset_key, (rows,))
        return 1.0 - place, jnp.ones(rows, jnp.float32)

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Continuous:
        return self


def validation_sampler(config: ProcessConfig) -> TimestepSampler:
    """Stratified times, whatever training draws, so that losses of two checkpoints can be compared."""
    return Stratified(config.timesteps) if config.kind == "gaussian" else Continuous()


def make_timestep_sampler(config: ProcessConfig) -> TimestepSampler:
    """The sampler a config describes; a discrete process has no grid, unless its times are drawn by importance."""
    if config.kind != "gaussian" and config.timestep_sampling != "importance":
        return Continuous(config.timestep_sampling == "stratified")
    match config.timestep_sampling:
        case "uniform":
            return Uniform(config.timesteps)
        case "stratified":
            return Stratified(config.timesteps)
        case "importance":
            return LossSecondMoment.start(config.timesteps)
        case other:
            raise ValueError(f"process.timestep_sampling={other!r}: expected uniform, stratified or importance")
