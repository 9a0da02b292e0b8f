"""What a training run consists of between two steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from dimba_jax.diffusion.process import Process
from dimba_jax.diffusion.timesteps import TimestepSampler
from dimba_jax.training.figures import Totals


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes; all of it is checkpointed."""

    step: Int[Array, ""]  # steps done
    params: PyTree  # a nested dict of float32 arrays
    ema: PyTree  # their running average
    opt_state: optax.OptState
    process: Process  # carries a learned schedule's bins
    timesteps: TimestepSampler  # carries the losses an importance sampler remembers
    totals: Totals  # figures since the last log line
    skipped: Int[Array, ""]  # steps, of those done, whose loss or gradient was not finite: they changed nothing else
    skipped_in_a_row: Int[Array, ""]  # the last of them, up to `step`

    @classmethod
    def start(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        process: Process,
        timesteps: TimestepSampler,
    ) -> TrainState:
        """The state before the first step."""
        return cls(
            step=jnp.int32(0),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            process=process,
            timesteps=timesteps,
            totals=Totals.zero(process.terms),
            skipped=jnp.int32(0),
            skipped_in_a_row=jnp.int32(0),
        )

    def parts(self) -> dict[str, Any]:
        """The state as a checkpoint holds it: a part each for what sampling reads, the rest in one."""
        rest = {
            "step": self.step, "optimizer": self.opt_state, "timesteps": self.timesteps, "totals": self.totals,
            "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row,
        }  # fmt: skip
        return {"params": self.params, "ema": self.ema, "process": self.process, "training": rest}

    def with_parts(self, parts: dict[str, Any]) -> TrainState:
        """The inverse of `parts`."""
        rest = parts["training"]
        return dataclasses.replace(
            self,
            step=rest["step"],
            params=parts["params"],
            ema=parts["ema"],
            opt_state=rest["optimizer"],
            process=parts["process"],
            timesteps=rest["timesteps"],
            totals=rest["totals"],
            skipped=rest["skipped"],
            skipped_in_a_row=rest["skipped_in_a_row"],
        )
