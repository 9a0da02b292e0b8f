"""The stepper of absorbing diffusion that the settings name."""

from __future__ import annotations

from dimba_jax.config import ConfigError, SamplingConfig
from dimba_jax.sampling.discrete.by_chance import Ancestral, ReMDM
from dimba_jax.sampling.discrete.by_sureness import Confidence, LowConfidence
from dimba_jax.sampling.discrete.distribution import token_choice
from dimba_jax.sampling.discrete.unmasker import Unmasker

__all__ = ["Ancestral", "Confidence", "LowConfidence", "ReMDM", "Unmasker", "make_unmasker"]


def make_unmasker(settings: SamplingConfig) -> Unmasker:
    """The stepper that the settings name.

    Raises:
      ConfigError: settings of it that contradict each other; a sampler of Gaussian diffusion.
    """
    choice, s = token_choice(settings), settings
    match s.sampler:
        case "ancestral":
            return Ancestral(choice)
        case "confidence":
            if s.threshold > 0.0 and s.score_noise > 0.0:
                raise ConfigError("score_noise orders positions, and a threshold asks for no order: set one of them")
            if s.threshold > 0.0 and s.padding_apart:
                raise ConfigError("padding_apart is about shares, and a threshold knows none: set one of them")
            return Confidence(choice, s.score, s.threshold, s.score_noise, s.padding_apart)
        case "low_confidence":
            return LowConfidence(choice, s.score, s.score_noise, s.revise)
        case "remdm":
            if s.remask_strength > 1.0:
                raise ConfigError(f"remask_strength={s.remask_strength}: is a probability, at most 1")
            if s.remask == "loop" and s.remask_window[0] == 0.0:
                raise ConfigError(f"remask_window={s.remask_window}: at t=0 nothing is masked; take a low end above 0")
            return ReMDM(choice, s.remask, s.remask_strength, s.remask_window)
        case other:
            raise ConfigError(f"sampling.sampler={other!r}: expected ancestral, confidence, low_confidence or remdm")
