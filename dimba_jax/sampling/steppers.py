"""Steps of the reverse process from level t to level s < t, given an estimate of x0.

A stepper knows neither network nor schedule, only levels. All of them end in exactly the last estimate
when s is clean (alpha-bar = 1), so no noise is left over however many steps are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from dimba_jax.config import SamplingConfig
from dimba_jax.diffusion.gaussian import noise_from, row_noise
from dimba_jax.diffusion.schedules import Level


class Stepper(Protocol):
    """init, one update per step, finalize. Frozen and hashable: a static argument of the loop."""

    def init(self, z: Float[Array, "b l e"]) -> Any:
        """What is remembered between steps."""
        ...

    def update(
        self,
        keys: PRNGKeyArray,
        state: Any,
        z: Float[Array, "b l e"],
        x0_hat: Float[Array, "b l e"],
        t: Level,
        s: Level,
    ) -> tuple[Any, Float[Array, "b l e"]]:
        """The latent at level s. `keys` holds one key a row, of this step alone."""
        ...

    def finalize(self, state: Any, z: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        """The clean latent after the last step."""
        ...


def _posterior_noise(t: Level, s: Level) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """beta = 1 - alpha-bar_t / alpha-bar_s of the step and the variance of q(z_s | z_t, x0)."""
    # each form is exact where the other one cancels
    beta = jnp.where(s.signal > 0.5, (t.noise - s.noise) / s.signal, 1.0 - t.signal / s.signal)
    return beta, beta * s.noise / t.noise


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling from q(z_s | z_t, x0_hat) (Ho et al. 2020, eqs. 6 and 7), for any pair of times."""

    def init(self, z: Float[Array, "b l e"]) -> None:
        return None

    def update(
        self,
        keys: PRNGKeyArray,
        state: None,
        z: Float[Array, "b l e"],
        x0_hat: Float[Array, "b l e"],
        t: Level,
        s: Level,
    ) -> tuple[None, Float[Array, "b l e"]]:
        beta, variance = _posterior_noise(t, s)
        mean = s.alpha * beta / t.noise * x0_hat + jnp.sqrt(t.signal / s.signal) * s.noise / t.noise * z
        return state, mean + jnp.sqrt(variance) * row_noise(keys, (z.shape[1], z.shape[2]))

    def finalize(self, state: None, z: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        return z


@dataclass(frozen=True)
class DDIM:
    """Song et al. (2021), eq. 12, over the steps actually taken; eta=0 is deterministic, eta=1 is DDPM."""

    eta: float = 0.0

    def init(self, z: Float[Array, "b l e"]) -> None:
        return None

    def update(
        self,
        keys: PRNGKeyArray,
        state: None,
        z: Float[Array, "b l e"],
        x0_hat: Float[Array, "b l e"],
        t: Level,
        s: Level,
    ) -> tuple[None, Float[Array, "b l e"]]:
        fresh = self.eta**2 * _posterior_noise(t, s)[1]
        z_s = s.alpha * x0_hat + jnp.sqrt(jnp.maximum(s.noise - fresh, 0.0)) * noise_from(x0_hat, z, t)
        if self.eta > 0.0:
            z_s = z_s + jnp.sqrt(fresh) * row_noise(keys, (z.shape[1], z.shape[2]))
        return state, z_s

    def finalize(self, state: None, z: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        return z


class Previous(NamedTuple):
    """The step before: its estimate and its log-SNR (-inf: there was none)."""

    x0_hat: Float[Array, "b l e"]
    log_snr: Float[Array, ""]


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order from the estimates of two steps.

    The first step has no step before it and is of first order (DDIM). So is the last one: its log-SNR
    goes to infinity, where extrapolating is meaningless; this is what keeps few steps stable.
    """

    def init(self, z: Float[Array, "b l e"]) -> Previous:
        return Previous(jnp.zeros_like(z), jnp.float32(-jnp.inf))

    def update(
        self,
        keys: PRNGKeyArray,
        state: Previous,
        z: Float[Array, "b l e"],
        x0_hat: Float[Array, "b l e"],
        t: Level,
        s: Level,
    ) -> tuple[Previous, Float[Array, "b l e"]]:
        # h of the paper is half a difference of log-SNRs; only the ratio h / h_before matters
        ratio = (s.log_snr - t.log_snr) / (t.log_snr - state.log_snr)
        ratio = jnp.where(s.noise > 0.0, ratio, 0.0)
        estimate = x0_hat + 0.5 * ratio * (x0_hat - state.x0_hat)
        z_s = s.sigma / t.sigma * z + (s.alpha - t.alpha * s.sigma / t.sigma) * estimate
        return Previous(x0_hat, t.log_snr), z_s

    def finalize(self, state: Previous, z: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        return z


def make_stepper(settings: SamplingConfig) -> Stepper:
    """The stepper that the settings name."""
    match settings.sampler:
        case "ddpm":
            return DDPM()
        case "ddim":
            return DDIM(settings.eta)
        case "dpmpp":
            return DPMSolverPP2M()
        case other:
            raise ValueError(f"sampling.sampler={other!r}: expected ddpm, ddim or dpmpp")
