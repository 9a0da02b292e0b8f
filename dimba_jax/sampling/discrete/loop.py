"""The loop of absorbing diffusion over one window: a whole row's target, or one block of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.diffusion.masked import Masked
from dimba_jax.sampling.discrete.unmasker import Unmasker
from dimba_jax.sampling.loop import stage_steps

TokenNetwork = Callable[[Array, Array], Array]  # (tokens (b, k), t (b,)) -> logits (b, k, v)


class TokenSample(NamedTuple):
    """What came of a batch of rows."""

    tokens: Int[Array, "b l"]
    network_calls: Int[Array, ""]  # of the batch; guidance counts two a step
    trajectory: Int[Array, "k b l"]  # from all masked to the end
    positions: Int[Array, ""] | int = 0  # a row's positions that went through the network, over all calls
    window_calls: Int[Array, ""] | int = 0  # calls that ran a part of the row, with an approximate view of the rest


class Unmasked(NamedTuple):
    """What came of a window."""

    tokens: Int[Array, "b k"]
    network_calls: Int[Array, ""]
    trajectory: Int[Array, "stages b k"]


class _Carry(NamedTuple):
    i: Int[Array, ""]
    tokens: Int[Array, "b k"]
    masked: Bool[Array, "b k"]
    state: Any  # the stepper's
    logits: Array | None  # of the last call, if they may serve again
    changed: Bool[Array, ""]  # whether any token did, in the whole batch, since those logits
    calls: Int[Array, ""]
    trajectory: Int[Array, "stages b k"]


def unmask(
    network: TokenNetwork,
    process: Masked,
    stepper: Unmasker,
    tokens: Int[Array, "b k"],
    editable: Bool[Array, "b k"],
    keys: PRNGKeyArray,
    steps: int,
    stages: int = 0,
    *,
    cost: int = 1,
    reuse: bool = False,
    maskable: Bool[Array, "b k"] | None = None,
) -> Unmasked:
    """Masks the editable positions and fills them in, in at most `steps` steps. To be called under jit.

    The loop ends as soon as no row has a mask left, unless the stepper re-masks. One step is one call of
    `network`, which counts as `cost` calls; with `reuse` there is none after a step that changed no token of
    the batch, which is right only if the network knows no time. A row's result depends on its own key and
    tokens alone: a row that is done waits unchanged for the others.

    `network` is told the time at which training masks as many of the `maskable` positions (all, unless given) as
    are masked, or as the schedule expects to be (`Masked.time_of`): with nothing given and a stepper that goes by
    chance, that is t.

    Of `stages` states the first is all masked; stage j stands behind `stage_steps(steps, stages)[j]` steps.

    Raises:
      ConfigError: no step. ValueError: more stages than states.
    """
    times = stepper.times(steps)
    at_stage = stage_steps(steps, stages)
    clock = jnp.asarray(times)
    tokens = jnp.where(editable, process.mask_id, tokens)
    room = jnp.sum(jnp.ones_like(editable) if maskable is None else maskable, axis=1)

    def share_of(positions: Bool[Array, "b k"]) -> Float[Array, " b"]:
        return jnp.sum(positions, axis=1) / jnp.maximum(room, 1).astype(jnp.float32)

    def step(carry: _Carry) -> _Carry:
        i, masked = carry.i, carry.masked
        t, s = clock[i], clock[i + 1]
        share = share_of(masked) if stepper.counts else share_of(editable) * (1.0 - process.alpha(t))
        now = process.network_time(process.time_of(share))
        call = carry.changed if reuse else jnp.bool_(True)
        if carry.logits is None:
            logits = network(carry.tokens, now)
        else:
            logits = jax.lax.cond(call, network, lambda *_: carry.logits, carry.tokens, now)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i + 1)
        found, masked, state = stepper.update(step_keys, carry.tokens, masked, logits, t, s, process, carry.state)
        here = jnp.asarray(at_stage) == i + 1
        return _Carry(
            i=i + 1,
            tokens=found,
            masked=masked,
            state=state,
            logits=logits if reuse else None,
            changed=jnp.any(found != carry.tokens),
            calls=carry.calls + jnp.where(call, cost, 0),
            trajectory=jnp.where(here[:, None, None], found[None], carry.trajectory),
        )

    def unfinished(carry: _Carry) -> Array:
        return (carry.i < steps) & (jnp.any(carry.masked) | stepper.goes_on)

    logits = None
    if reuse:
        shape = jax.eval_shape(network, tokens, jax.ShapeDtypeStruct((tokens.shape[0],), jnp.float32))
        logits = jnp.zeros(shape.shape, shape.dtype)
    end = jax.lax.while_loop(
        unfinished,
        step,
        _Carry(
            i=jnp.int32(0),
            tokens=tokens,
            masked=editable,
            state=stepper.init(editable),
            logits=logits,
            changed=jnp.bool_(True),
            calls=jnp.int32(0),
            trajectory=jnp.broadcast_to(tokens[None], (len(at_stage), *tokens.shape)),
        ),
    )
    # stages that the loop did not come to show what it ended with
    left_out = jnp.asarray(at_stage)[:, None, None] > end.i
    return Unmasked(end.tokens, end.calls, jnp.where(left_out, end.tokens[None], end.trajectory))
