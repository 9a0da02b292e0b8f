"""What a training or validation pass takes and gives, whatever the process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dimba_jax.config import RunConfig
from dimba_jax.diffusion.process import Process
from dimba_jax.diffusion.timesteps import TimestepSampler

Batch = dict[str, Array]  # tokens (b, l) int32, target (b, l) bool, valid (b, l) bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teacher:
    """Trained networks whose distribution is learned from beside the data: an `Ensemble`, taken apart."""

    params: PyTree
    graph: nnx.GraphDef = field(metadata={"static": True})


class RowDraws(NamedTuple):
    """The random choices of the rows of a batch."""

    t: Float[Array, "b ..."]  # a time for each row, or for each of its blocks
    weight: Float[Array, " b"]  # of a timestep sampler that does not draw uniformly
    noise: PRNGKeyArray  # (b,): a key a row
    keep: Bool[Array, " b"] | None  # False: the row is trained without its source; None: no row is
    anchors: Bool[Array, "b l"] | None = None  # positions of the target that stay clean; None: none does


class StepDraws(NamedTuple):
    """The random choices of a step, made once for the whole batch, so microbatches change none of them."""

    rows: RowDraws
    first_pass: Bool[Array, ""] | None  # whether predictions see an earlier one; None: the model takes none
    dropout: PRNGKeyArray | None


class Pass(NamedTuple):
    """What one pass of the network over a batch says of every position that can count.

    k positions of a row: all of them, or those behind its source.
    """

    objective: Float[Array, "b k"]  # what is minimised, in nats or squared error, weighted
    terms: dict[str, Float[Array, "b k"]]  # the process's losses by name, without the config's weights
    positions: Bool[Array, "b k"]  # that count
    predicted: Bool[Array, "b k"]  # of those, the ones whose token was not there to be seen
    correct: Bool[Array, "b k"]  # of those, the ones where no token has a larger logit than their own


def draw(key: PRNGKeyArray, timesteps: TimestepSampler, process: Process, rows: int, config: RunConfig) -> StepDraws:
    """All draws of one step from its key.

    Times are stratified over all rows and their blocks together. Self-conditioning has one coin a step,
    not one a row: nearly every batch would hold rows of both kinds and need the first pass. With one
    coin, steps whose coin is 0 skip it altogether.
    """
    t_key, noise_key, keep_key, coin_key, dropout_key = jax.random.split(key, 5)
    size = config.process.block_size
    blocks = (config.data.target_length // size,) if size else ()
    t, weight = timesteps.draw(t_key, rows * max(sum(blocks), 1))
    unconditional = config.process.condition_dropout
    return StepDraws(
        rows=RowDraws(
            t=process.training_time(t).reshape(rows, *blocks),
            weight=jnp.mean(weight.reshape(rows, -1), axis=1),
            noise=jax.vmap(lambda row: jax.random.fold_in(noise_key, row))(jnp.arange(rows)),
            keep=jax.random.bernoulli(keep_key, 1.0 - unconditional, (rows,)) if unconditional > 0.0 else None,
            # the noise's keys are those of 0 to rows - 1
            anchors=_anchors(jax.random.fold_in(noise_key, rows), rows, config) if config.process.anchor_prob else None,
        ),
        first_pass=(
            jax.random.bernoulli(coin_key, config.process.self_condition_prob)
            if config.model.self_conditioning and config.process.self_condition_prob > 0.0
            else None
        ),
        dropout=dropout_key if config.model.dropout > 0.0 else None,
    )


def _anchors(key: PRNGKeyArray, rows: int, config: RunConfig) -> Bool[Array, "b l"]:
    """In `anchor_prob` of the rows each position of the target with a probability of the row's own, but never all."""
    coin_key, share_key, position_key = jax.random.split(key, 3)
    data = config.data
    share = jax.random.uniform(share_key, (rows,))
    share = jnp.where(jax.random.bernoulli(coin_key, config.process.anchor_prob, (rows,)), share, 0.0)
    height = jax.random.uniform(position_key, (rows, data.target_length))
    chosen = height < jnp.minimum(share, jnp.max(height, axis=1))[:, None]
    return jnp.pad(chosen, ((0, 0), (data.source_length, 0)))


def is_best(logits: Float[Array, "b l v"], tokens: Array) -> Bool[Array, "b l"]:
    """Where no token has a larger logit than the given one.

    It asks for the largest value, not for its place: argmax over the vocabulary is slow on CPUs, and ties are rare.
    """
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return own >= jnp.max(logits, axis=-1)
