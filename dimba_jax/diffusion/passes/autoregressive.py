"""A pass of next-token prediction."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from dimba_jax.config import RunConfig
from dimba_jax.diffusion.autoregressive import Autoregressive
from dimba_jax.diffusion.objective import counted
from dimba_jax.diffusion.passes.contract import Batch, Pass, StepDraws, is_best
from dimba_jax.diffusion.passes.masked import visible_positions


def autoregressive_pass(
    graphdef: nnx.GraphDef,
    params: PyTree,
    process: Autoregressive,
    batch: Batch,
    draws: StepDraws,
    config: RunConfig,
    *,
    all_target: bool = False,
) -> Pass:
    """Every target token from those before it, in one causal pass."""
    denoiser: Any = nnx.merge(graphdef, params)
    tokens, target, first = batch["tokens"], batch["target"], config.data.source_length
    logits = denoiser(
        process.inputs(tokens, target), jnp.zeros(tokens.shape[0]),
        visible=None if all_target else visible_positions(batch, draws.rows.keep), first=first, key=draws.dropout,
    )  # fmt: skip
    tokens = tokens[:, first:]
    positions = counted(target, batch["valid"], "target", config.process.loss_on_padding)[:, first:]
    return Pass(
        objective=process.objective(logits, tokens),
        terms=process.losses(logits, tokens),
        positions=positions,
        predicted=positions,
        correct=positions & is_best(logits, tokens),
    )
