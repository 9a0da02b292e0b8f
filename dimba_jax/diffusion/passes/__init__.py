"""One pass of a network over a batch, for each process: where the two meet in training and in validation."""

from collections.abc import Callable

from dimba_jax.diffusion.passes.autoregressive import autoregressive_pass
from dimba_jax.diffusion.passes.contract import Batch, Pass, RowDraws, StepDraws, Teacher, draw
from dimba_jax.diffusion.passes.gaussian import gaussian_pass
from dimba_jax.diffusion.passes.masked import masked_pass

# by the `kind` of the process
PASSES: dict[str, Callable[..., Pass]] = {
    "gaussian": gaussian_pass,
    "masked": masked_pass,
    "autoregressive": autoregressive_pass,
}

__all__ = ["PASSES", "Batch", "Pass", "RowDraws", "StepDraws", "Teacher", "draw"]
