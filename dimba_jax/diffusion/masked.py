"""Masked (absorbing-state) diffusion on tokens: a token stays itself or becomes the mask, and the mask stays."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from dimba_kernels.dispatch import target_platform
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ProcessConfig

# What every reported bound draws its times from. Below the lower end a mask is so rare, and weighs so much, that
# the variance grows like its logarithm; leaving it out moved the bound by a few thousandths at most in tests, in
# either direction (with the cosine schedule the weights' own mean falls short of one by .0006).
FULL_RANGE = (1e-3, 1.0)

HALF_PI = math.pi / 2


class MaskedTokens(NamedTuple):
    """A corrupted batch: tokens with masks among them, where those are, and the time of every position."""

    tokens: Int[Array, "b l"]
    masked: Bool[Array, "b l"]
    t: Float[Array, "b l"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masked:
    """q(z_t = x) = alpha(t), q(z_t = mask) = 1 - alpha(t), each position on its own (MDLM, arXiv 2406.07524, eq. 2).

    The network puts out logits over the vocabulary without the mask, and what is revealed is never
    predicted: that is the SUBS parameterisation (MDLM, section 3.2.3), with no logit to set to -inf.
    Schedules: log_linear, alpha = 1 - t; cosine, alpha = 1 - cos(pi/2 (1 - t)) (MD4, arXiv 2406.04329, table 1).

    A registered pytree: the range that training draws times from is its only leaf, since a search may move it.
    """

    time_range: Float[Array, 2]
    mask_id: int = field(metadata={"static": True})
    timesteps: int = field(metadata={"static": True})  # the most steps that sampling takes
    schedule: Literal["log_linear", "cosine"] = field(default="log_linear", metadata={"static": True})
    weighting: Literal["elbo", "linear", "none"] = field(default="elbo", metadata={"static": True})
    label_smoothing: float = field(default=0.0, metadata={"static": True})
    distillation: float = field(default=0.0, metadata={"static": True})

    kind: ClassVar[str] = "masked"
    prediction: ClassVar[str] = "logits"
    terms: ClassVar[tuple[str, ...]] = ("nelbo",)

    def alpha(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The probability that a token is still itself at t: 1 at t=0, 0 at t=1."""
        if self.schedule == "cosine":
            return 1.0 - jnp.cos(HALF_PI * (1.0 - t))
        return 1.0 - t

    def time_of(self, share: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The time at which this share of the positions is masked: 1 - alpha(t) = share.

        With tokens given, or positions revealed by number, a sampler's own clock runs apart from the share of
        masks that a network trained with time expects.
        """
        if self.schedule == "cosine":
            return 1.0 - jnp.arccos(share) / HALF_PI
        return share

    def weight(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """-alpha'(t) / (1 - alpha(t)): what a masked position's log-loss counts in the NELBO (MDLM, eq. 10)."""
        if self.schedule == "cosine":
            return HALF_PI * jnp.tan(HALF_PI * (1.0 - t))
        return 1.0 / t

    def training_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Times in (0, 1] moved into the range that training draws from."""
        low, high = self.time_range
        return low + (high - low) * t

    def network_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The time that is fed to the network: t."""
        return t

    def corrupt(
        self, keys: PRNGKeyArray, tokens: Int[Array, "b l"], t: Float[Array, "b l"], target: Bool[Array, "b l"]
    ) -> MaskedTokens:
        """Masks each `target` position with probability 1 - alpha(t); a row depends on its own key alone."""
        draw = jax.vmap(lambda key: jax.random.uniform(key, (tokens.shape[1],)))(keys)
        masked = target & (draw >= self.alpha(t))
        return MaskedTokens(jnp.where(masked, self.mask_id, tokens), masked, t)

    def losses(
        self, logits: Float[Array, "b l v"], tokens: Int[Array, "b l"], noised: MaskedTokens
    ) -> dict[str, Float[Array, "b l"]]:
        """nelbo: the log-loss of every masked position times `weight(t)`, in nats; 0 where nothing is masked.

        Its mean over draws of t and of the masks, added up over a row, bounds -log p(row) from above.
        """
        return {"nelbo": jnp.where(noised.masked, self.weight(noised.t) * log_loss(logits, tokens), 0.0)}

    def objective(
        self,
        logits: Float[Array, "b l v"],
        tokens: Int[Array, "b l"],
        noised: MaskedTokens,
        taught: Float[Array, "b l v"] | None = None,
    ) -> Float[Array, "b l"]:
        """What training minimises: the NELBO's terms, or the log-loss with other weights, labels perhaps smoothed.

        Of `taught`, a teacher's logits at the same positions, the cross-entropy of its distribution takes the place of
        a share `distillation` of the log-loss (word-level distillation, Kim and Rush, arXiv 1606.07947, at temperature
        1; of ensembles, Freitag et al., arXiv 1702.01802).
        """
        weight = {
            "elbo": lambda: self.weight(noised.t),
            "linear": lambda: 1.0 - noised.t + 1.0 / self.timesteps,  # RDM (arXiv 2302.05737), eq. 11
            "none": lambda: jnp.ones_like(noised.t),
        }[self.weighting]()
        loss = log_loss(logits, tokens)
        if self.label_smoothing:
            even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
            loss = (1.0 - self.label_smoothing) * loss + self.label_smoothing * even
        if taught is not None:
            soft = cross_entropy(jax.lax.stop_gradient(taught), logits)
            loss = (1.0 - self.distillation) * loss + self.distillation * soft
        return jnp.where(noised.masked, weight * loss, 0.0)

    def at_rest(self) -> Masked:
        """The process with the full range of times, whatever training draws from: every bound is reported on it."""
        return self.with_time_range(FULL_RANGE)

    def with_time_range(self, time_range: tuple[float, float] | Array) -> Masked:
        """The same process, training drawn from other times."""
        return dataclasses.replace(self, time_range=jnp.asarray(time_range, jnp.float32))

    def update(self, t: Float[Array, ...], loss: Float[Array, " b"]) -> Masked:
        """The process itself: it learns nothing from losses."""
        return self


def log_loss(logits: Float[Array, "b l v"], tokens: Int[Array, "b l"]) -> Float[Array, "b l"]:
    """-log p(token) in nats, float32."""
    logits = logits.astype(jnp.float32)
    if target_platform() == "cpu":
        own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    else:  # a gather's gradient is a scatter into an array of zeros, which accelerators do not fuse with the softmax's
        place = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
        own = jnp.sum(jnp.where(place == tokens[..., None], logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - own


def cross_entropy(taught: Float[Array, "b l v"], logits: Float[Array, "b l v"]) -> Float[Array, "b l"]:
    """-sum p log q in nats, float32, of the distributions p and q that the two arrays are logits of."""
    logits = logits.astype(jnp.float32)
    p = jax.nn.softmax(taught.astype(jnp.float32), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(p * logits, axis=-1)


def make_masked(config: ProcessConfig, vocab_size: int) -> Masked:
    """The masked process of a config; the mask's id follows the vocabulary."""
    assert config.schedule in ("log_linear", "cosine")  # config_checks
    return Masked(
        time_range=jnp.asarray(config.time_range, jnp.float32),
        mask_id=vocab_size,
        timesteps=config.timesteps,
        schedule=config.schedule,
        weighting=config.weighting,
        label_smoothing=config.label_smoothing,
        distillation=config.distillation,
    )
