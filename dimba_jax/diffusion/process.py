"""What a diffusion process is to the rest of the library. It knows no network."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol, Self

from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.diffusion.schedules import Level


class Noised(NamedTuple):
    """A corrupted batch: the latent, the noise in it, and each row's time."""

    z: Float[Array, "b l e"]
    noise: Float[Array, "b l e"]
    t: Float[Array, " b"]


class Process(Protocol):
    """What training asks of every process."""

    kind: ClassVar[str]  # its name in `config.process.kind`
    terms: ClassVar[tuple[str, ...]]  # the names of its losses

    @property
    def timesteps(self) -> int:
        """T: the most steps that sampling takes."""
        ...

    def training_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The times that training uses for draws of t from (0, 1]."""
        ...

    def network_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The time that is fed to the network, in [0, 1]."""
        ...

    def at_rest(self) -> Self:
        """The process as validation sees it: its corruption at t is the same throughout training."""
        ...

    def update(self, t: Float[Array, ...], loss: Float[Array, " b"]) -> Self:
        """The process after having seen the rows' unweighted losses (a learned schedule moves)."""
        ...


class EmbeddingProcess(Process, Protocol):
    """Diffusion of embeddings: its prior, its corruption, and how a network's output becomes a clean estimate."""

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
