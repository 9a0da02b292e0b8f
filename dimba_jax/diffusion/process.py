"""What a diffusion process is to the rest of the library. It knows no network."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.diffusion.schedules import Level


class Noised(NamedTuple):
    """A corrupted batch: the latent, the noise in it, and each row's time."""

    z: Float[Array, "b l e"]
    noise: Float[Array, "b l e"]
    t: Float[Array, " b"]


class Process(Protocol):
    """Corruption, its prior, its loss, and how a network's output becomes a clean estimate."""

    @property
    def timesteps(self) -> int:
        """T: times lie on the grid {1..T}/T."""
        ...

    @property
    def prediction(self) -> str:
        """What the network puts out: x0, v, epsilon or logits."""
        ...

    def prior(self, keys: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "b l e"]:
        """Latents at t=1 of shape (b, *shape); a row depends on its own key alone."""
        ...

    def corrupt(
        self, keys: PRNGKeyArray, x0: Float[Array, "b l e"], t: Float[Array, " b"], target: Bool[Array, "b l"]
    ) -> Noised:
        """Noise at time t where `target`; elsewhere x0 stays clean."""
        ...

    def level(self, t: Float[Array, "*b"]) -> Level:
        """Variances of signal and noise at t; exactly (1, 0) at t=0."""
        ...

    def network_time(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        """The time that is fed to the network, in [0, 1]."""
        ...

    def denoised(
        self, prediction: Array, z: Float[Array, "b l e"], t: Float[Array, " b"], table: Float[Array, "v e"]
    ) -> Float[Array, "b l e"]:
        """The estimate of x0 that a network's output stands for."""
        ...

    def losses(
        self,
        prediction: Array,
        x0_hat: Float[Array, "b l e"],
        logits: Float[Array, "b l v"],
        tokens: Int[Array, "b l"],
        x0: Float[Array, "b l e"],
        noised: Noised,
    ) -> dict[str, Float[Array, "b l"]]:
        """The loss terms by name, unreduced and unweighted."""
        ...

    def total(self, losses: dict[str, Float[Array, "b l"]]) -> Float[Array, "b l"]:
        """The terms added up with the config's weights."""
        ...

    def weights(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        """The weight of a row's squared error at its time."""
        ...

    def at_rest(self) -> Self:
        """The process as it is before any `update`: its noise at t is the same throughout training."""
        ...

    def update(self, t: Float[Array, " b"], loss: Float[Array, " b"]) -> Self:
        """The process after having seen the rows' unweighted losses (a learned schedule moves)."""
        ...
