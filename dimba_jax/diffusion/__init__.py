"""Diffusion processes: schedules, how times are drawn, corruption, losses. Nothing here knows a network."""

from dimba_jax.diffusion.autoregressive import Autoregressive
from dimba_jax.diffusion.build import make_process
from dimba_jax.diffusion.gaussian import Gaussian
from dimba_jax.diffusion.masked import Masked, MaskedTokens
from dimba_jax.diffusion.predict import Prediction, predict
from dimba_jax.diffusion.process import EmbeddingProcess, Noised, Process
from dimba_jax.diffusion.timesteps import make_timestep_sampler, validation_sampler

__all__ = [
    "Autoregressive",
    "EmbeddingProcess",
    "Gaussian",
    "Masked",
    "MaskedTokens",
    "Noised",
    "Prediction",
    "Process",
    "make_process",
    "make_timestep_sampler",
    "predict",
    "validation_sampler",
]
