"""One training step: draw, predict, differentiate, update. Process and denoiser meet here and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.diffusion.objective import counted, reduce
from dimba_jax.diffusion.passes import PASSES, Batch, RowDraws, StepDraws, Teacher, draw
from dimba_jax.diffusion.process import Process
from dimba_jax.diffusion.timesteps import validation_sampler
from dimba_jax.training.figures import RowFigures, StepReport
from dimba_jax.training.optimizer import averaged
from dimba_jax.training.state import TrainState


def batch_loss(
    params: PyTree,
    graphdef: nnx.GraphDef,
    process: Process,
    batch: Batch,
    draws: StepDraws,
    total: Float[Array, ""],
    config: RunConfig,
    teacher: Teacher | None = None,
) -> tuple[Float[Array, ""], RowFigures]:
    """The objective over some rows, divided by `total`, the counted positions of the whole batch."""
    options: dict[str, Any] = {"all_target": config.data.source_length == 0}  # every row's, its padding too
    if teacher is not None:  # of masked diffusion alone
        options["teacher"] = teacher
    found = PASSES[process.kind](graphdef, params, process, batch, draws, config, **options)
    objective = reduce(found.objective, found.positions, draws.rows.weight, total)

    def row_sum(values: Array) -> Float[Array, " b"]:
        return jax.lax.stop_gradient(jnp.sum(jnp.where(found.positions, values, 0.0), axis=1, dtype=jnp.float32))

    return objective, RowFigures(
        loss=row_sum(found.objective),
        terms={name: row_sum(value) for name, value in found.terms.items()},
        correct=row_sum(found.correct),
        predicted=row_sum(found.predicted),
        positions=row_sum(found.positions),
    )


def whole_batch_gradient(
    params: PyTree,
    graphdef: nnx.GraphDef,
    process: Process,
    batch: Batch,
    draws: StepDraws,
    config: RunConfig,
    teacher: Teacher | None = None,
) -> tuple[Float[Array, ""], RowFigures, PyTree]:
    """Objective, figures of the rows, and gradient of the whole batch, in `accumulate` microbatches.

    Microbatch i takes every accumulate-th row, from i: its rows then lie on all devices. Each one's sum
    is divided by the whole batch's count, so the microbatches' gradients add up to the batch's own
    (activation dropout aside, whose masks are drawn for each microbatch).
    """
    pieces = config.training.accumulate
    counts = counted(batch["target"], batch["valid"], config.process.loss_on, config.process.loss_on_padding)
    if draws.rows.anchors is not None:
        counts &= ~draws.rows.anchors
    total = jnp.sum(counts).astype(jnp.float32)
    gradient = jax.value_and_grad(batch_loss, has_aux=True)
    if pieces == 1:
        (loss, figures), grads = gradient(params, graphdef, process, batch, draws, total, config, teacher)
        return loss, figures, grads

    def cut(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1)

    def joined(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    def add(carry: tuple[Array, PyTree], piece: tuple[Int[Array, ""], Batch, RowDraws]):
        number, rows, row_draws = piece
        dropout = None if draws.dropout is None else jax.random.fold_in(draws.dropout, number)
        own = StepDraws(row_draws, draws.first_pass, dropout)
        (loss, figures), grads = gradient(params, graphdef, process, rows, own, total, config, teacher)
        return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], grads)), figures

    nothing = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params))
    pieces_of = (jnp.arange(pieces), jax.tree.map(cut, batch), jax.tree.map(cut, draws.rows))
    (loss, grads), figures = jax.lax.scan(add, nothing, pieces_of)
    return loss, jax.tree.map(joined, figures), grads


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: RunConfig,
    placement: PyTree | None = None,
) -> Wrapped:
    """The jitted step (state, batch, base key[, teacher]) -> (state, report); the state's buffers are donated.

    Its key is fold_in(base key, state.step), so a resumed run draws what an unbroken one draws. Where the loss or the
    gradient is not finite the state stays as it is, but for `step`, which draws anew, and the counts of skipped steps.
    The report is for the host to look at in passing; figures gather in `state.totals` and are read when they are
    logged. `placement` is where the state lies and stays (`parallel.placement`); None leaves it to XLA. The teacher is
    what a share `config.process.distillation` of the loss is of.

    Raises:
      ConfigError: when it is traced, of a share without a teacher: such a step would be another one.
    """

    def train_step(
        state: TrainState, batch: Batch, base_key: PRNGKeyArray, teacher: Teacher | None = None
    ) -> tuple[TrainState, StepReport]:
        share = config.process.distillation
        if teacher is None and share > 0:
            raise ConfigError(f"config.process.distillation={share}: only training loads teachers; set it to 0 here")
        if teacher is not None and share == 0:
            raise ConfigError("a step with a teacher needs config.process.distillation above 0")
        key = jax.random.fold_in(base_key, state.step)
        draws = draw(key, state.timesteps, state.process, batch["tokens"].shape[0], config)
        loss, rows, grads = whole_batch_gradient(state.params, graphdef, state.process, batch, draws, config, teacher)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        row_loss = rows.loss / jnp.maximum(rows.positions, 1.0)
        t = draws.rows.t
        row_time = t if t.ndim == 1 else jnp.mean(t, axis=1)
        grad_norm = optax.tree.norm(grads)
        taken = dataclasses.replace(
            state,
            params=params,
            ema=averaged(state.ema, params, config.optimizer.ema_decay, state.step - state.skipped),
            opt_state=opt_state,
            process=state.process.update(row_time, row_loss),
            timesteps=state.timesteps.update(row_time, row_loss),
            totals=state.totals.add(state.process.network_time(row_time), loss, grad_norm, rows),
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # a choice of each element, which XLA makes where it writes the new one: no further copy, as of lax.cond
        chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), taken, state)
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        state = dataclasses.replace(
            chosen,
            step=state.step + 1,
            skipped=state.skipped + jnp.where(finite, 0, 1),
            skipped_in_a_row=in_a_row,
        )
        return state, StepReport(loss, grad_norm, row_loss, in_a_row)

    if placement is None:
        return jax.jit(train_step, donate_argnums=0)
    everywhere = NamedSharding(jax.tree.leaves(placement)[0].mesh, PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=(placement, everywhere))


def make_valid_step(
    graphdef: nnx.GraphDef, config: RunConfig
) -> Callable[[PyTree, Process, Batch, PRNGKeyArray], RowFigures]:
    """The jitted (params, process, batch, key) -> figures of the rows, summed over the batch; of the data alone.

    No dropout, of activations or of the condition, and no anchors, times stratified over the batch whatever training
    draws, and a learned schedule at rest, so that losses of two checkpoints can be compared.
    """

    def valid_step(params: PyTree, process: Process, batch: Batch, key: PRNGKeyArray) -> RowFigures:
        process = process.at_rest()
        draws = draw(key, validation_sampler(config.process), process, batch["tokens"].shape[0], config)
        draws = draws._replace(rows=draws.rows._replace(keep=None, anchors=None), dropout=None)
        _, figures = batch_loss(params, graphdef, process, batch, draws, jnp.float32(1.0), config)
        return jax.tree.map(jnp.sum, figures)

    return jax.jit(valid_step)
