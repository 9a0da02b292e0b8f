"""One training step: draw, predict, differentiate, update. Process and denoiser meet here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.stages import Wrapped
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dimba_jax.config import RunConfig
from dimba_jax.diffusion.objective import counted, reduce
from dimba_jax.diffusion.predict import predict
from dimba_jax.diffusion.process import Process
from dimba_jax.diffusion.timesteps import Stratified, TimestepSampler
from dimba_jax.training.figures import RowFigures
from dimba_jax.training.optimizer import averaged
from dimba_jax.training.state import TrainState

Batch = dict[str, Array]  # tokens (b, l) int32, target (b, l) bool, valid (b, l) bool


class RowDraws(NamedTuple):
    """The random choices of the rows of a batch."""

    t: Float[Array, " b"]
    weight: Float[Array, " b"]  # of a timestep sampler that does not draw uniformly
    noise: PRNGKeyArray  # (b,): a key a row
    keep: Bool[Array, " b"] | None  # False: the row is trained without its source; None: no row is


class StepDraws(NamedTuple):
    """The random choices of a step, made once for the whole batch, so microbatches change none of them."""

    rows: RowDraws
    first_pass: Bool[Array, ""] | None  # whether predictions see an earlier one; None: the model takes none
    dropout: PRNGKeyArray | None


def draw(key: PRNGKeyArray, timesteps: TimestepSampler, rows: int, config: RunConfig) -> StepDraws:
    """All draws of one step from its key.

    Self-conditioning has one coin a step, not one a row: nearly every batch would hold rows of both
    kinds and need the first pass. With one coin, steps whose coin is 0 skip it altogether.
    """
    t_key, noise_key, keep_key, coin_key, dropout_key = jax.random.split(key, 5)
    t, weight = timesteps.draw(t_key, rows)
    unconditional = config.process.condition_dropout
    return StepDraws(
        rows=RowDraws(
            t=t,
            weight=weight,
            noise=jax.vmap(lambda row: jax.random.fold_in(noise_key, row))(jnp.arange(rows)),
            keep=jax.random.bernoulli(keep_key, 1.0 - unconditional, (rows,)) if unconditional > 0.0 else None,
        ),
        first_pass=(
            jax.random.bernoulli(coin_key, config.process.self_condition_prob)
            if config.model.self_conditioning and config.process.self_condition_prob > 0.0
            else None
        ),
        dropout=dropout_key if config.model.dropout > 0.0 else None,
    )


def batch_loss(
    params: PyTree,
    graphdef: nnx.GraphDef,
    process: Process,
    batch: Batch,
    draws: StepDraws,
    total: Float[Array, ""],
    config: RunConfig,
) -> tuple[Float[Array, ""], RowFigures]:
    """The objective over some rows, divided by `total`, the counted positions of the whole batch."""
    denoiser = nnx.merge(graphdef, params)
    tokens, target, valid = batch["tokens"], batch["target"], batch["valid"]
    t, weight, noise_keys, keep = draws.rows
    encode_key, network_key = (None, None) if draws.dropout is None else jax.random.split(draws.dropout)
    x0 = denoiser.embed(tokens)
    noised = process.corrupt(noise_keys, x0, t, target)
    condition = denoiser.encode(tokens, target, valid, keep, key=encode_key)

    def first_pass(frozen: PyTree) -> Float[Array, "b l e"]:
        frozen_params, z, frozen_condition = frozen
        frozen_denoiser = nnx.merge(graphdef, frozen_params)
        return predict(frozen_denoiser, process, z, t, frozen_condition, None, network_key).x0_hat

    self_condition = None
    if draws.first_pass is not None:
        frozen = jax.lax.stop_gradient((params, noised.z, condition))
        nothing = jnp.zeros_like(noised.z)
        self_condition = jax.lax.cond(draws.first_pass, first_pass, lambda _: nothing, frozen)

    prediction = predict(denoiser, process, noised.z, t, condition, self_condition, network_key)
    terms = process.losses(prediction.raw, prediction.x0_hat, prediction.logits, tokens, x0, noised)
    positions = counted(target, valid, config.process.loss_on, config.process.loss_on_padding)
    losses = process.total(terms | {"mse": terms["mse"] * process.weights(t)[:, None]})
    objective = reduce(losses, positions, weight, total)

    def row_sum(values: Array) -> Float[Array, " b"]:
        return jax.lax.stop_gradient(jnp.sum(jnp.where(positions, values, 0.0), axis=1))

    # the largest value, not its place: argmax over the vocabulary is slow on CPUs, and ties are rare
    own = jnp.take_along_axis(prediction.logits, tokens[..., None], axis=-1)[..., 0]
    correct = (own >= jnp.max(prediction.logits, axis=-1)).astype(jnp.float32)
    return objective, RowFigures(
        loss=row_sum(losses),
        terms={name: row_sum(value) for name, value in terms.items()},
        correct=row_sum(correct),
        positions=jnp.sum(positions, axis=1).astype(jnp.float32),
    )


def whole_batch_gradient(
    params: PyTree, graphdef: nnx.GraphDef, process: Process, batch: Batch, draws: StepDraws, config: RunConfig
) -> tuple[Float[Array, ""], RowFigures, PyTree]:
    """Objective, figures of the rows, and gradient of the whole batch, in `accumulate` microbatches.

    Microbatch i takes every accumulate-th row, from i: its rows then lie on all devices. Each one's sum
    is divided by the whole batch's count, so the microbatches' gradients add up to the batch's own
    (activation dropout aside, whose masks are drawn for each microbatch).
    """
    pieces = config.training.accumulate
    counts = counted(batch["target"], batch["valid"], config.process.loss_on, config.process.loss_on_padding)
    total = jnp.sum(counts).astype(jnp.float32)
    gradient = jax.value_and_grad(batch_loss, has_aux=True)
    if pieces == 1:
        (loss, figures), grads = gradient(params, graphdef, process, batch, draws, total, config)
        return loss, figures, grads

    def cut(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1)

    def joined(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    def add(carry: tuple[Array, PyTree], piece: tuple[Int[Array, ""], Batch, RowDraws]):
        number, rows, row_draws = piece
        dropout = None if draws.dropout is None else jax.random.fold_in(draws.dropout, number)
        own = StepDraws(row_draws, draws.first_pass, dropout)
        (loss, figures), grads = gradient(params, graphdef, process, rows, own, total, config)
        return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], grads)), figures

    nothing = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params))
    pieces_of = (jnp.arange(pieces), jax.tree.map(cut, batch), jax.tree.map(cut, draws.rows))
    (loss, grads), figures = jax.lax.scan(add, nothing, pieces_of)
    return loss, jax.tree.map(joined, figures), grads


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: RunConfig,
    placement: NamedSharding | None = None,
) -> Wrapped:
    """The jitted step (state, batch, base key) -> (state, loss); the state's buffers are donated.

    Its key is fold_in(base key, state.step), so a resumed run draws what an unbroken one draws. The
    loss is for pacing the host; figures gather in `state.totals` and are read when they are logged.
    `placement` is where the state lies and stays (replicated over a mesh); None leaves it to XLA.
    """

    def train_step(state: TrainState, batch: Batch, base_key: PRNGKeyArray) -> tuple[TrainState, Float[Array, ""]]:
        draws = draw(jax.random.fold_in(base_key, state.step), state.timesteps, batch["tokens"].shape[0], config)
        loss, rows, grads = whole_batch_gradient(state.params, graphdef, state.process, batch, draws, config)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        row_loss = rows.loss / jnp.maximum(rows.positions, 1.0)
        t = draws.rows.t
        return TrainState(
            step=state.step + 1,
            params=params,
            ema=averaged(state.ema, params, config.optimizer.ema_decay, state.step),
            opt_state=opt_state,
            process=state.process.update(t, row_loss),
            timesteps=state.timesteps.update(t, row_loss),
            totals=state.totals.add(state.step + 1, state.process.network_time(t), loss, optax.tree.norm(grads), rows),
        ), loss

    return jax.jit(train_step, donate_argnums=0, out_shardings=placement)


def make_valid_step(
    graphdef: nnx.GraphDef, config: RunConfig
) -> Callable[[PyTree, Process, Batch, PRNGKeyArray], RowFigures]:
    """The jitted (params, process, batch, key) -> figures of the rows, summed over the batch.

    No dropout, of activations or of the condition, times stratified over the batch whatever training
    draws, and a learned schedule at rest, so that losses of two checkpoints can be compared.
    """

    def valid_step(params: PyTree, process: Process, batch: Batch, key: PRNGKeyArray) -> RowFigures:
        draws = draw(key, Stratified(config.process.timesteps), batch["tokens"].shape[0], config)
        draws = draws._replace(rows=draws.rows._replace(keep=None), dropout=None)
        _, figures = batch_loss(params, graphdef, process.at_rest(), batch, draws, jnp.float32(1.0), config)
        return jax.tree.map(jnp.sum, figures)

    return jax.jit(valid_step)
