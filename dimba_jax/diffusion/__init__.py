"""Diffusion processes: schedules, how times are drawn, corruption, losses. Nothing here knows a network."""

from dimba_jax.diffusion.gaussian import Gaussian, make_process
from dimba_jax.diffusion.predict import Prediction, predict
from dimba_jax.diffusion.process import Noised, Process
from dimba_jax.diffusion.timesteps import make_timestep_sampler

__all__ = ["Gaussian", "Noised", "Prediction", "Process", "make_process", "make_timestep_sampler", "predict"]
