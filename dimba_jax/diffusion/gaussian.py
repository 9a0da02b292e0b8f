"""Gaussian diffusion on token embeddings, with partial noising: the source stays clean, the target is noised."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ConfigError, ProcessConfig
from dimba_jax.diffusion.process import Noised
from dimba_jax.diffusion.schedules import LOG_SNR_LIMIT, Level, Schedule, make_schedule

ALPHA_MIN = math.exp(-LOG_SNR_LIMIT / 2)  # divisor of an epsilon prediction where no signal is left


def row_noise(keys: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "b l e"]:
    """Standard normal noise; row i depends on keys[i] alone, not on the batch it is in."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def noise_from(x0: Float[Array, "b l e"], z: Float[Array, "b l e"], level: Level) -> Float[Array, "b l e"]:
    """The noise in z if x0 were the clean value: (z - alpha x0) / sigma. Needs sigma > 0."""
    level = level.over(z.ndim)
    return (z - level.alpha * x0) / level.sigma


def prediction_from(
    kind: Literal["x0", "v", "epsilon"], x0: Float[Array, "b l e"], noise: Float[Array, "b l e"], level: Level
) -> Float[Array, "b l e"]:
    """What a perfect network of this kind puts out: x0, v = alpha eps - sigma x0 (Salimans & Ho 2022), or eps."""
    level = level.over(x0.ndim)
    match kind:
        case "x0":
            return x0
        case "v":
            return level.alpha * noise - level.sigma * x0
        case "epsilon":
            return noise


def x0_from(
    kind: Literal["x0", "v", "epsilon", "logits"],
    prediction: Array,
    z: Float[Array, "b l e"],
    level: Level,
    table: Float[Array, "v e"],
) -> Float[Array, "b l e"]:
    """The estimate of x0 in a network's output; the inverse of `prediction_from`. Logits give their mean embedding."""
    level = level.over(z.ndim)
    match kind:
        case "x0":
            return prediction
        case "v":
            return level.alpha * z - level.sigma * prediction
        case "epsilon":
            return (z - level.sigma * prediction) / jnp.maximum(level.alpha, ALPHA_MIN)
        case "logits":
            return jax.nn.softmax(prediction, axis=-1) @ table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussian:
    """q(z_t | x0) = N(sqrt(alpha-bar) x0, 1 - alpha-bar) (Ho et al. 2020, eq. 4) and its losses.

    A registered pytree: a learned schedule's bins are its leaves, all else is static.
    """

    schedule: Schedule
    timesteps: int = field(metadata={"static": True})
    prediction: Literal["x0", "v", "epsilon", "logits"] = field(default="x0", metadata={"static": True})
    mse_weight: float = field(default=1.0, metadata={"static": True})
    ce_weight: float = field(default=1.0, metadata={"static": True})
    prior_weight: float = field(default=1.0, metadata={"static": True})
    min_snr_gamma: float = field(default=0.0, metadata={"static": True})

    kind: ClassVar[str] = "gaussian"
    terms: ClassVar[tuple[str, ...]] = ("mse", "ce", "prior")

    def level(self, t: Float[Array, "*b"]) -> Level:
        """The schedule's level at t > 0; exactly clean at t=0, where every sampler ends."""
        signal, noise = self.schedule.level(t)
        clean = t <= 0.0
        return Level(jnp.where(clean, 1.0, signal), jnp.where(clean, 0.0, noise))

    def prior(self, keys: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "b l e"]:
        """N(0, 1) latents of shape (b, *shape), each row from its own key."""
        return row_noise(keys, shape)

    def corrupt(
        self, keys: PRNGKeyArray, x0: Float[Array, "b l e"], t: Float[Array, " b"], target: Bool[Array, "b l"]
    ) -> Noised:
        """z = sqrt(alpha-bar) x0 + sqrt(1 - alpha-bar) eps where `target`, x0 elsewhere."""
        noise = row_noise(keys, (x0.shape[1], x0.shape[2]))
        level = self.level(t).over(x0.ndim)
        z = jnp.where(target[..., None], level.alpha * x0 + level.sigma * noise, x0)
        return Noised(z, noise, t)

    def training_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The times themselves, which lie on the grid {1..T}/T."""
        return t

    def network_time(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        """t, or a learned schedule's base time, whose noise does not move during training."""
        return self.schedule.network_time(t)

    def denoised(
        self, prediction: Array, z: Float[Array, "b l e"], t: Float[Array, " b"], table: Float[Array, "v e"]
    ) -> Float[Array, "b l e"]:
        """The estimate of x0 in the network's output."""
        return x0_from(self.prediction, prediction.astype(jnp.float32), z, self.level(t), table)

    def losses(
        self,
        prediction: Array,
        x0_hat: Float[Array, "b l e"],
        logits: Float[Array, "b l v"],
        tokens: Int[Array, "b l"],
        x0: Float[Array, "b l e"],
        noised: Noised,
    ) -> dict[str, Float[Array, "b l"]]:
        """The terms at each position, float32, unweighted.

        mse: squared error of x0_hat, mean over e; in the space of x0 whatever the network predicts.
        ce: -log p(token) of the logits, in nats. They come from the network's output: a rounding loss
          on x0 itself would only keep embeddings apart and teach the network nothing.
        prior: KL of q(z_1 | x0) to N(0, 1), in nats.
        """
        del prediction, noised  # x0_hat stands for the one; the other's time enters through `weights`
        mse = jnp.mean(jnp.square(x0_hat - x0), axis=-1)
        logits = logits.astype(jnp.float32)
        own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        ce = jax.nn.logsumexp(logits, axis=-1) - own
        signal = self.level(jnp.float32(1.0)).signal
        prior = 0.5 * jnp.sum(signal * jnp.square(x0) - signal - jnp.log1p(-signal), axis=-1)
        return {"mse": mse, "ce": ce, "prior": prior}

    def total(self, losses: dict[str, Float[Array, "b l"]]) -> Float[Array, "b l"]:
        """mse, ce and prior with the config's weights."""
        weights = {"mse": self.mse_weight, "ce": self.ce_weight, "prior": self.prior_weight}
        terms = [weight * losses[name] for name, weight in weights.items() if weight]  # one of 0 costs no gradient
        return sum(terms[1:], terms[0])

    def weights(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        """min(SNR, gamma), the min-SNR weight of an error in x0 (Hang et al. 2023, eq. 8); 1 if gamma is 0.

        For v and epsilon this is their min-SNR weight too, since the loss is an error in x0.
        """
        if self.min_snr_gamma == 0.0:
            return jnp.ones_like(t)
        return jnp.minimum(jnp.exp(self.level(t).log_snr), self.min_snr_gamma)

    def at_rest(self) -> Gaussian:
        """The process with the schedule that a learned one started from: the same noise at t for every checkpoint."""
        return dataclasses.replace(self, schedule=self.schedule.at_rest())

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Gaussian:
        """The process with its schedule after having seen these losses; the same one if the schedule is fixed."""
        return dataclasses.replace(self, schedule=self.schedule.update(t, loss))


def make_gaussian(config: ProcessConfig) -> Gaussian:
    """The Gaussian process a config describes.

    Raises:
      ConfigError: an epsilon prediction without min-SNR weights. Its error in x0 is that in epsilon
        divided by the SNR, which has no bound near t=1.
    """
    if config.prediction == "epsilon" and config.min_snr_gamma <= 0.0:
        raise ConfigError(
            f"config.process.min_snr_gamma={config.min_snr_gamma}: an epsilon prediction's error in x0 grows without "
            "bound at low SNR; set it above 0 (5 is usual)"
        )
    return Gaussian(
        schedule=make_schedule(config),
        timesteps=config.timesteps,
        prediction=config.prediction,
        mse_weight=config.mse_weight,
        ce_weight=config.ce_weight,
        prior_weight=config.prior_weight,
        min_snr_gamma=config.min_snr_gamma,
    )
