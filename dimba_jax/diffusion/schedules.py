"""Noise schedules: how much signal is left at diffusion time t, t in [0, 1].

A schedule gives the `Level` of a time: the variances of signal and noise, which add up to 1. Both are
computed, since the small one of the two would be lost in `1 - x` at either end. All maths is float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from dimba_jax.config import ProcessConfig

BETA_MAX = 0.999  # the cap of Nichol & Dhariwal (2021) on one step's noise; it keeps the terminal SNR above 0
LOG_SNR_LIMIT = 20.0


class Level(NamedTuple):
    """Variances at a time: z = sqrt(signal) x0 + sqrt(noise) eps. `signal` is the papers' alpha-bar."""

    signal: Float[Array, "*b"]
    noise: Float[Array, "*b"]

    @property
    def alpha(self) -> Float[Array, "*b"]:
        return jnp.sqrt(self.signal)

    @property
    def sigma(self) -> Float[Array, "*b"]:
        return jnp.sqrt(self.noise)

    @property
    def log_snr(self) -> Float[Array, "*b"]:
        """log(signal / noise) in nats, clipped to +-LOG_SNR_LIMIT."""
        tiny = jnp.finfo(jnp.float32).tiny
        ratio = jnp.log(jnp.maximum(self.signal, tiny)) - jnp.log(jnp.maximum(self.noise, tiny))
        return jnp.clip(ratio, -LOG_SNR_LIMIT, LOG_SNR_LIMIT)

    def over(self, rank: int) -> Level:
        """The level of b rows, shaped to broadcast against arrays of this rank (a scalar level stays one)."""
        if self.signal.ndim == 0:
            return self
        shape = self.signal.shape + (1,) * (rank - self.signal.ndim)
        return Level(self.signal.reshape(shape), self.noise.reshape(shape))


class Schedule:
    """A map from time to level; `update` and `network_time` matter to a learned one only."""

    def level(self, t: Float[Array, "*b"]) -> Level:
        raise NotImplementedError

    def alpha_bar(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The papers' alpha-bar(t), the signal's variance."""
        return self.level(t).signal

    def network_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The time the network is told: one that means the same noise throughout training."""
        return t

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Schedule:
        """The schedule after having seen these rows' losses."""
        return self

    def at_rest(self) -> Schedule:
        """The schedule before any update."""
        return self


def _static(default):
    return field(default=default, metadata={"static": True})


def _capped(level: Level, last: Level) -> Level:
    """Keeps a step's beta below BETA_MAX, where `last` is the level one step before the end."""
    floor = (1.0 - BETA_MAX) * last.signal
    return Level(jnp.maximum(level.signal, floor), jnp.where(level.signal < floor, 1.0 - floor, level.noise))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha-bar = f(t)/f(0), f(t) = cos((t+s)/(1+s) pi/2)^2, with beta capped (Nichol & Dhariwal 2021, eq. 17)."""

    timesteps: int = _static(1000)
    offset: float = _static(0.008)  # s

    def level(self, t: Float[Array, "*b"]) -> Level:
        return _capped(self._exact(t), self._exact(jnp.float32(1.0 - 1.0 / self.timesteps)))

    def _exact(self, t: Float[Array, "*b"]) -> Level:
        s = self.offset
        quarter = 0.5 * math.pi / (1.0 + s)
        start = math.cos(quarter * s) ** 2
        # cos at the complementary angle, and cos^2 a - cos^2 b = sin(a+b) sin(b-a): neither end cancels
        signal = jnp.square(jnp.sin(quarter * (1.0 - t))) / start
        noise = jnp.sin(quarter * (t + 2.0 * s)) * jnp.sin(quarter * t) / start
        return Level(signal, noise)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sqrt(Schedule):
    """alpha-bar = 1 - sqrt(t + s), s = 1e-4, with beta capped (Diffusion-LM, Li et al. 2022, appendix A).

    alpha-bar(0) = .99: the data already carry noise of standard deviation .1. Going through `betas`
    drops that factor, as DiffuSeq's code does.
    """

    timesteps: int = _static(1000)
    offset: float = _static(1e-4)

    def level(self, t: Float[Array, "*b"]) -> Level:
        # 1 - sqrt(t + s) is negative beyond 1 - s: the cap starts from the last grid time before that
        last = (math.ceil(self.timesteps * (1.0 - self.offset) - 1e-6) - 1) / self.timesteps
        return _capped(self._exact(t), self._exact(jnp.float32(max(last, 0.0))))

    def _exact(self, t: Float[Array, "*b"]) -> Level:
        noise = jnp.sqrt(t + self.offset)
        return Level((1.0 - t - self.offset) / (1.0 + noise), noise)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear(Schedule):
    """DDPM's betas, 1e-4 to 2e-2 over 1000 steps, scaled to T (Ho et al. 2020, section 4).

    alpha-bar is their running product on the grid k/T; between grid times its logarithm is interpolated.
    """

    timesteps: int = _static(1000)
    first: float = _static(1e-4)
    last: float = _static(2e-2)

    def level(self, t: Float[Array, "*b"]) -> Level:
        scale = 1000.0 / self.timesteps
        beta = np.minimum(np.linspace(self.first * scale, self.last * scale, self.timesteps), BETA_MAX)
        log_signal = np.concatenate([[0.0], np.cumsum(np.log1p(-beta))]).astype(np.float32)
        grid = np.linspace(0.0, 1.0, self.timesteps + 1, dtype=np.float32)
        value = jnp.interp(t, jnp.asarray(grid), jnp.asarray(log_signal))
        return Level(jnp.exp(value), -jnp.expm1(value))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogSNR(Schedule):
    """log-SNR falls linearly in t (Kingma et al. 2021, section 4, with its ends fixed)."""

    start: float = _static(10.0)  # log-SNR at t=0, nats
    end: float = _static(-10.0)

    def level(self, t: Float[Array, "*b"]) -> Level:
        log_snr = self.start + t * (self.end - self.start)
        return Level(jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseScaled(Schedule):
    """SNR divided by factor^2 (Difformer's noise rescaling, Gao et al. 2022, section 4.2)."""

    base: Schedule
    factor: float = _static(1.0)

    def level(self, t: Float[Array, "*b"]) -> Level:
        signal, noise = self.base.level(t)
        noise = self.factor**2 * noise
        return Level(signal / (signal + noise), noise / (signal + noise))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ZeroTerminal(Schedule):
    """sqrt(alpha-bar) shifted and scaled to be 0 at t=1 and unchanged at t=0 (Lin et al. 2024, algorithm 1)."""

    base: Schedule

    def level(self, t: Float[Array, "*b"]) -> Level:
        here = self.base.level(t)
        first = self.base.level(jnp.float32(0.0))
        last = self.base.level(jnp.float32(1.0))
        span = first.alpha - last.alpha
        alpha = jnp.maximum(here.alpha - last.alpha, 0.0) * first.alpha / span
        # 1 - alpha through the small quantities 1 - a = noise / (1 + a)
        lost = here.noise / (1.0 + here.alpha)
        lost_first = first.noise / (1.0 + first.alpha)
        missing = (first.alpha * lost - last.alpha * lost_first) / span
        return Level(jnp.square(alpha), missing * (1.0 + alpha))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Learned(Schedule):
    """A monotone warp of a base schedule's time along which the training loss grows linearly.

    The time warping of CDCD (Dieleman et al. 2022, section 4.2) and SeqDiffuSeq's adaptive schedule
    (Yuan et al. 2022, section 3.3): a running mean of the loss in bins of base time u, made monotone,
    is inverted. No gradients. Until every bin has seen `warm` rows the warp is the identity.
    """

    base: Schedule
    total: Float[Array, " bins"]  # decayed sum of losses seen in each bin of u
    seen: Float[Array, " bins"]  # decayed number of rows seen
    decay: float = _static(0.999)  # per row in the bin
    mix: float = _static(0.05)  # share of the identity, which keeps the warp invertible
    warm: float = _static(20.0)

    @classmethod
    def start(cls, base: Schedule, bins: int = 50) -> Learned:
        # two buffers: one array in both leaves could not be donated by a training step
        return cls(base, jnp.zeros(bins, jnp.float32), jnp.zeros(bins, jnp.float32))

    def level(self, t: Float[Array, "*b"]) -> Level:
        return self.base.level(self.network_time(t))

    def network_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The base schedule's time u at t."""
        edges = jnp.linspace(0.0, 1.0, self.total.shape[0] + 1, dtype=jnp.float32)
        return jnp.interp(t, self._share_below(), edges)

    def at_rest(self) -> Schedule:
        return self.base

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Learned:
        bins = self.total.shape[0]
        index = jnp.clip((self.network_time(t) * bins).astype(jnp.int32), 0, bins - 1)
        rows = jnp.zeros(bins, jnp.float32).at[index].add(1.0)
        keep = jnp.float32(self.decay) ** rows
        total = self.total * keep + jnp.zeros(bins, jnp.float32).at[index].add(loss.astype(jnp.float32))
        return Learned(self.base, total, self.seen * keep + rows, self.decay, self.mix, self.warm)

    def _share_below(self) -> Float[Array, " edges"]:
        """The share of the loss's whole rise that lies below each bin edge, from 0 to 1."""
        bins = self.total.shape[0]
        mean = self.total / jnp.maximum(self.seen, 1e-6)
        middle = 0.5 * (mean[1:] + mean[:-1])
        edges = jnp.concatenate([1.5 * mean[:1] - 0.5 * mean[1:2], middle, 1.5 * mean[-1:] - 0.5 * mean[-2:-1]])
        rise = jnp.diff(jax.lax.cummax(edges))
        whole = jnp.sum(rise)
        even = jnp.full(bins, 1.0 / bins, jnp.float32)
        share = (1.0 - self.mix) * rise / jnp.maximum(whole, 1e-9) + self.mix * even
        share = jnp.where((jnp.min(self.seen) >= self.warm) & (whole > 0.0), share, even)
        below = jnp.cumsum(share)
        return jnp.concatenate([jnp.zeros(1, jnp.float32), below / below[-1]])


def betas(schedule: Schedule, timesteps: int) -> Float[Array, " T"]:
    """beta_k = 1 - alpha-bar(k/T) / alpha-bar((k-1)/T) for k = 1..T, at most BETA_MAX."""
    signal = schedule.alpha_bar(jnp.arange(timesteps + 1, dtype=jnp.float32) / timesteps)
    return jnp.clip(1.0 - signal[1:] / signal[:-1], 0.0, BETA_MAX)


def make_schedule(config: ProcessConfig) -> Schedule:
    """The schedule a config describes; a learned one starts from sqrt, as SeqDiffuSeq does."""
    base: Schedule
    match config.schedule:
        case "cosine":
            base = Cosine(config.timesteps)
        case "sqrt" | "learned":
            base = Sqrt(config.timesteps)
        case "linear":
            base = Linear(config.timesteps)
        case "log_snr":
            base = LogSNR()
        case other:
            raise ValueError(f"process.schedule={other!r}: expected cosine, sqrt, linear, log_snr or learned")
    if config.zero_terminal_snr:
        base = ZeroTerminal(base)
    if config.noise_scale != 1.0:
        base = NoiseScaled(base, config.noise_scale)
    return Learned.start(base) if config.schedule == "learned" else base
