"""The sampling loop: one jitted scan from noise to tokens, or a while loop if it may stop early."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import SamplingConfig
from dimba_jax.data.vocabulary import EOS, PAD
from dimba_jax.diffusion.predict import Network, token_logits
from dimba_jax.diffusion.process import EmbeddingProcess
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.sampling.discrete.distribution import sureness, surest, surest_apart
from dimba_jax.sampling.guidance import guided_network
from dimba_jax.sampling.steppers import Stepper


class SampleResult(NamedTuple):
    """What came of a batch. Tokens and latents hold the source unchanged at its positions."""

    tokens: Int[Array, "b l"]
    z: Float[Array, "b l e"]
    network_calls: Int[Array, ""]  # of the batch; guidance counts two a step
    trajectory: Int[Array, "k b l"]  # the noise's nearest tokens, then the tokens predicted along the way


class _Carry(NamedTuple):
    z: Float[Array, "b l e"]
    x0_hat: Float[Array, "b l e"]  # as predicted, before any clamping
    state: Any  # the stepper's
    tokens: Int[Array, "b l"]
    still: Bool[Array, "b l"] | None  # what is diffused, of the target, which is not anchors yet; None: all of it
    steady: Int[Array, " b"]  # steps in a row that changed no token
    trajectory: Int[Array, "k b l"]


def time_grid(timesteps: int, steps: int) -> np.ndarray:
    """steps + 1 falling times from 1 to 0 on the grid k/T, as even as the grid allows.

    Raises:
      ValueError: more steps than the process has, or none.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps={steps}: expected 1 to {timesteps}, the timesteps of the process")
    return (np.rint(np.linspace(timesteps, 0, steps + 1)) / timesteps).astype(np.float32)


def stage_steps(steps: int, stages: int) -> np.ndarray:
    """How many steps each stage of a trajectory has behind it: from 0 (noise) to all, evenly.

    Raises:
      ValueError: one stage, or more than there are steps to tell apart.
    """
    if stages == 0:
        return np.zeros(0, np.int32)
    if not 2 <= stages <= steps + 1:
        raise ValueError(f"stages={stages}: expected 0 or 2 to {steps + 1} for {steps} steps")
    return np.rint(np.linspace(0, steps, stages)).astype(np.int32)


def nearest_tokens(x: Float[Array, "b l e"], table: Float[Array, "v e"]) -> Int[Array, "b l"]:
    """The row of the table nearest in L2: |x - E|^2 is least where x E - |E|^2 / 2 is greatest."""
    half = 0.5 * jnp.sum(jnp.square(table), axis=-1)
    return jnp.argmax(x @ table.T - half[None, None, :], axis=-1).astype(jnp.int32)


def biased(logits: Float[Array, "b l v"], bias: float) -> Float[Array, "b l v"]:
    """Logits with `bias` added to those of the end token and of padding."""
    return logits.at[..., jnp.asarray([PAD, EOS])].add(bias)


def sample(
    denoiser: Network,
    process: EmbeddingProcess,
    stepper: Stepper,
    tokens: Int[Array, "b l"],
    target: Bool[Array, "b l"],
    valid: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    settings: SamplingConfig,
    *,
    self_conditioning: bool,
    stages: int = 0,
) -> SampleResult:
    """Fills in the target positions of a batch; source positions are re-imposed at every step.

    With `settings.anchors` step i of n leaves the share i/n of the target's positions written: those it is surest of
    become clean tokens, which the others are diffused around, as positions of the source. With `padding_apart` those
    where padding is most probable and the others are two groups, and of what is left of each the share 1/(n - i + 1)
    is written, at least one. With many steps all is written before the last one, and the loop ends there.

    Compiled once for each batch shape and each group of settings; the network's parameters are
    arguments of the compiled function. A row depends on its own key and source alone, early exit
    included: a row whose tokens have not changed for `early_exit` steps keeps them, and the loop ends
    when all rows have come to that.

    Raises:
      ValueError: steps or stages out of range.
    """
    time_grid(process.timesteps, settings.steps)
    stage_steps(settings.steps, stages)
    graph, parameters = nnx.split(denoiser)
    # what does not bear on the compiled loop must not compile it anew
    settings = dataclasses.replace(settings, sampler="ddim", eta=0.0, num_samples=1, batch_size=1, ema=True)
    return _sample(
        graph, parameters, process, stepper, tokens, target, valid, keys, settings, self_conditioning, stages
    )


@functools.partial(jax.jit, static_argnames=("graph", "stepper", "settings", "self_conditioning", "stages"))
def _sample(
    graph: Any,
    parameters: Any,
    process: EmbeddingProcess,
    stepper: Stepper,
    tokens: Int[Array, "b l"],
    target: Bool[Array, "b l"],
    valid: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    settings: SamplingConfig,
    self_conditioning: bool,
    stages: int,
) -> SampleResult:
    denoiser: Any = merge_prepared(graph, parameters, tokens.size)
    network = guided_network(denoiser, tokens, target, valid, settings.guidance)
    table = denoiser.table()
    source = denoiser.embed(tokens)
    rows, length, width = source.shape
    steps = settings.steps
    grid = time_grid(process.timesteps, steps)
    times = jnp.asarray(grid)
    at_stage = stage_steps(steps, stages)

    def keep_source(z: Array) -> Array:
        return jnp.where(target[..., None], z, source)

    def clamp(x0_hat: Array) -> Array:
        return table[nearest_tokens(x0_hat, table)]

    clamps = grid[:-1] <= settings.clamp_from if settings.clamp_from > 0.0 else np.zeros(steps, bool)
    decodes = np.zeros(steps, bool)
    decodes[[steps - 1, *(at_stage[1:] - 1)]] = True
    decodes |= settings.early_exit > 0 or settings.anchors

    def step(i: Array, carry: _Carry) -> _Carry:
        t, s = times[i], times[i + 1]
        now = process.network_time(jnp.full(rows, t))
        raw = network.call(carry.z, now, carry.x0_hat if self_conditioning else None, carry.still)
        if settings.end_bias:
            raw = biased(raw, settings.end_bias)
        spread = raw if settings.mean_temperature == 1.0 else raw / settings.mean_temperature
        x0_hat = process.denoised(spread, carry.z, jnp.full(rows, t), table)
        used = _where_step(clamps, i, lambda: clamp(x0_hat), lambda: x0_hat)
        step_keys = _fold(keys, i + 1)
        state, z = stepper.update(step_keys, carry.state, carry.z, used, process.level(t), process.level(s))

        def logits() -> Array:
            return token_logits(denoiser, process, raw, x0_hat)

        def decode() -> Array:
            best = jnp.argmax(logits(), axis=-1).astype(jnp.int32)
            return jnp.where(target if carry.still is None else carry.still, best, carry.tokens)

        found = _where_step(decodes, i, decode, lambda: carry.tokens)
        found, steady = _settle(carry, found, settings.early_exit)
        still = carry.still
        if still is not None:
            sure = sureness(jax.nn.log_softmax(logits(), axis=-1), settings.score)
            if settings.padding_apart:
                written = surest_apart(sure, still, found == PAD, 1.0 / (steps - i))
            else:
                left = jnp.round(jnp.sum(target, axis=1) * (1.0 - (i + 1) / steps)).astype(jnp.int32)
                written = surest(sure, still, jnp.sum(still, axis=1) - left)
            still = still & ~written
            z = jnp.where(still[..., None], z, table[found])
        here = jnp.asarray(at_stage) == i + 1
        trajectory = jnp.where(here[:, None, None], found[None], carry.trajectory)
        return _Carry(keep_source(z), x0_hat, state, found, still, steady, trajectory)

    noise = settings.temperature * process.prior(_fold(keys, jnp.int32(0)), (length, width))
    z = keep_source(noise)
    first = jnp.where(target, nearest_tokens(z, table), tokens) if stages or settings.early_exit else tokens
    start = _Carry(
        z=z,
        x0_hat=jnp.zeros_like(z),
        state=stepper.init(z),
        tokens=first,
        still=target if settings.anchors else None,
        steady=jnp.zeros(rows, jnp.int32),
        trajectory=jnp.broadcast_to(first[None], (stages, rows, length)),
    )
    taken, end = _run(step, start, steps, _rows_open(settings))
    # stages that an early end left out show what it ended with
    left_out = jnp.asarray(at_stage)[:, None, None] > taken
    return SampleResult(
        tokens=end.tokens,
        z=keep_source(stepper.finalize(end.state, end.z)),
        network_calls=taken * network.calls,
        trajectory=jnp.where(left_out, end.tokens[None], end.trajectory),
    )


def _rows_open(settings: SamplingConfig) -> Callable[[_Carry], Bool[Array, " b"]] | None:
    """The rows that further steps may change; None if all steps are taken whatever becomes of the rows."""
    if settings.early_exit:
        return lambda carry: carry.steady < settings.early_exit
    if settings.anchors and settings.padding_apart:
        return lambda carry: jnp.any(cast("Array", carry.still), axis=1)
    return None


def _run(
    step: Callable[[Array, _Carry], _Carry],
    start: _Carry,
    steps: int,
    rows_open: Callable[[_Carry], Bool[Array, " b"]] | None,
) -> tuple[Int[Array, ""], _Carry]:
    """All the steps, or as many as it takes until no row is open; with the number taken."""
    if rows_open is None:
        end, _ = jax.lax.scan(lambda carry, i: (step(i, carry), None), start, jnp.arange(steps, dtype=jnp.int32))
        return jnp.int32(steps), end

    def goes_on(at: tuple[Array, _Carry]) -> Array:
        return (at[0] < steps) & jnp.any(rows_open(at[1]))

    return jax.lax.while_loop(goes_on, lambda at: (at[0] + 1, step(at[0], at[1])), (jnp.int32(0), start))


def _settle(carry: _Carry, found: Int[Array, "b l"], early_exit: int) -> tuple[Int[Array, "b l"], Int[Array, " b"]]:
    """Counts the steps without a change and holds the rows that have had enough of them."""
    if early_exit == 0:
        return found, carry.steady
    held = carry.steady >= early_exit
    found = jnp.where(held[:, None], carry.tokens, found)
    changed = jnp.any(found != carry.tokens, axis=1)
    return found, jnp.where(changed, 0, carry.steady + 1)


def _where_step(flags: np.ndarray, i: Array, yes: Callable[[], Array], no: Callable[[], Array]) -> Array:
    """`yes()` at the flagged steps; work that no step or every step needs costs no branch."""
    if flags.all():
        return yes()
    if not flags.any():
        return no()
    return jax.lax.cond(jnp.asarray(flags)[i], yes, no)


def _fold(keys: PRNGKeyArray, data: Int[Array, ""]) -> PRNGKeyArray:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
