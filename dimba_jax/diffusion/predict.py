"""One call of the network, seen through a process: shared by the training step and the sampling loop."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.diffusion.process import EmbeddingProcess


class Network(Protocol):
    """What training and sampling ask of a denoiser; `Condition` is opaque to them."""

    def table(self) -> Float[Array, "v e"]: ...

    def embed(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l e"]: ...

    def encode(
        self,
        tokens: Int[Array, "b l"],
        target: Bool[Array, "b l"],
        valid: Bool[Array, "b l"],
        keep: Bool[Array, " b"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Any: ...

    def narrowed(self, condition: Any, target: Bool[Array, "b l"]) -> Any: ...

    def __call__(
        self,
        z: Float[Array, "b l e"],
        t: Float[Array, " b"],
        condition: Any,
        *,
        self_condition: Float[Array, "b l e"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Array: ...

    def round(self, x0_hat: Float[Array, "b l e"]) -> Float[Array, "b l v"]: ...


class Prediction(NamedTuple):
    """A network's output and what it says about the clean embeddings and the tokens."""

    raw: Array  # (b, l, e), or (b, l, v) if the network puts out logits
    x0_hat: Float[Array, "b l e"]
    logits: Float[Array, "b l v"]


def token_logits(
    denoiser: Network, process: EmbeddingProcess, raw: Array, x0_hat: Float[Array, "b l e"]
) -> Float[Array, "b l v"]:
    """The network's own logits, or its rounding head on the estimate of x0."""
    return raw if process.prediction == "logits" else denoiser.round(x0_hat)


def predict(
    denoiser: Network,
    process: EmbeddingProcess,
    z: Float[Array, "b l e"],
    t: Float[Array, " b"],
    condition: Any,
    self_condition: Float[Array, "b l e"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Prediction:
    """Runs the network once; without a key there is no dropout."""
    raw = denoiser(z, process.network_time(t), condition, self_condition=self_condition, key=key)
    x0_hat = process.denoised(raw, z, t, denoiser.table())
    return Prediction(raw, x0_hat, token_logits(denoiser, process, raw, x0_hat))
