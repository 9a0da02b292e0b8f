"""AdamW behind a global-norm clip, its learning rate over steps, and the averaged parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from dimba_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """A linear warm-up from 0, then constant, or a linear or cosine decay to 0 at the last step.

    A warm-up longer than the run is cut to it.
    """
    warmup = min(config.warmup_steps, steps)
    rest = max(steps - warmup, 1)
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(config.learning_rate)
        case "linear":
            after = optax.linear_schedule(config.learning_rate, 0.0, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(config.learning_rate, rest)
    if warmup == 0:
        return after
    # 1-based: the first update already moves, and the peak is reached at step `warmup`
    ramp = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def decays(params: PyTree) -> PyTree:
    """True for the matmul weights, the leaves named `kernel`: norms, biases, tables, A, dt and D do not decay.

    Nor does anything below a `frozen` module, which no gradient would ever pull back.
    """

    def decays_here(path: tuple, _: Array) -> bool:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        return names[-1] == "kernel" and "frozen" not in names

    return jax.tree_util.tree_map_with_path(decays_here, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clip (off at clip_norm 0), then AdamW (Loshchilov & Hutter 2019)."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decays if config.weight_decay else None,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def averaged(ema: PyTree, params: PyTree, decay: float, step: Int[Array, ""]) -> PyTree:
    """The exponential average after step n (from 0), its decay warmed up: min(decay, (1+n)/(10+n))."""
    n = step.astype(jnp.float32)
    keep: Float[Array, ""] = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda old, new: keep * old + (1.0 - keep) * new, ema, params)
