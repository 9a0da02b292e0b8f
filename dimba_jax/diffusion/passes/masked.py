"""A pass of masked diffusion: the whole row at once, or block by block behind its clean past."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from dimba_jax.config import RunConfig
from dimba_jax.diffusion.masked import Masked
from dimba_jax.diffusion.objective import counted
from dimba_jax.diffusion.passes.contract import Batch, Pass, StepDraws, Teacher, is_best


def masked_pass(
    graphdef: nnx.GraphDef,
    params: PyTree,
    process: Masked,
    batch: Batch,
    draws: StepDraws,
    config: RunConfig,
    *,
    all_target: bool = False,
    teacher: Teacher | None = None,
) -> Pass:
    """Masks targets and predicts what stood there. The source is never masked (as in LLaDA's fine-tuning).

    With blocks the network also reads the clean row, so that a masked block sees the clean ones before it
    (BD3-LM, arXiv 2503.09573, section 3.2); every block has a time of its own. With `all_target` every position
    is known to be one, so that nothing is hidden and the network needs no mask. A `teacher` sees what the network sees,
    without dropout.
    """
    denoiser: Any = nnx.merge(graphdef, params)
    tokens, target, first = batch["tokens"], batch["target"], config.data.source_length
    size = config.process.block_size
    t = position_times(draws.rows.t, first, tokens.shape[1])
    noised = process.corrupt(draws.rows.noise, tokens, t, target)
    visible = None if all_target else visible_positions(batch, draws.rows.keep)
    time = process.network_time(draws.rows.t)
    if size:
        logits = denoiser.two_streams(
            noised.tokens, tokens, time, visible=visible, block_size=size, first=first, key=draws.dropout
        )
    else:
        logits = denoiser(noised.tokens, time, visible=visible, first=first, key=draws.dropout)
    taught = None
    if teacher is not None:
        taught = nnx.merge(teacher.graph, teacher.params)(noised.tokens, time, visible=visible, first=first)
    noised = noised._replace(tokens=noised.tokens[:, first:], masked=noised.masked[:, first:], t=noised.t[:, first:])
    tokens = tokens[:, first:]
    positions = counted(target, batch["valid"], "target", config.process.loss_on_padding)[:, first:]
    predicted = positions & noised.masked
    return Pass(
        objective=process.objective(logits, tokens, noised, taught),
        terms=process.losses(logits, tokens, noised),
        positions=positions,
        predicted=predicted,
        correct=predicted & is_best(logits, tokens),
    )


def position_times(t: Float[Array, "b ..."], first: int, length: int) -> Float[Array, "b l"]:
    """The time of every position: that of its row, or of its block. A block has (length - first) / blocks positions.

    The source in front of the blocks takes the first one's: it is clean, and nothing reads its time.
    """
    if t.ndim == 1:
        return jnp.broadcast_to(t[:, None], (t.shape[0], length))
    blocks = jnp.repeat(t, (length - first) // t.shape[1], axis=1)
    return jnp.concatenate([jnp.broadcast_to(t[:, :1], (t.shape[0], first)), blocks], axis=1)


def visible_positions(batch: Batch, keep: Bool[Array, " b"] | None) -> Bool[Array, "b l"]:
    """What the network may see: the source without its padding, unless it is withheld, and all of the target."""
    source = batch["valid"] & ~batch["target"]
    if keep is not None:
        source = source & keep[:, None]
    return source | batch["target"]
