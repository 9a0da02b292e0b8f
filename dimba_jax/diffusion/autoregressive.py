"""Next-token prediction, the baseline: seen as a process it corrupts nothing and shifts its input by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from dimba_jax.config import ProcessConfig
from dimba_jax.diffusion.masked import log_loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Autoregressive:
    """p(x) = prod_i p(x_i | source, x_1 .. x_{i-1}), by a network whose mixers are causal.

    The mask's id, which no text holds, stands in front of the first target token as its begin token.
    """

    mask_id: int = field(metadata={"static": True})
    timesteps: int = field(metadata={"static": True})
    label_smoothing: float = field(default=0.0, metadata={"static": True})

    kind: ClassVar[str] = "autoregressive"
    prediction: ClassVar[str] = "logits"
    terms: ClassVar[tuple[str, ...]] = ("nll",)

    def inputs(self, tokens: Int[Array, "b l"], target: Bool[Array, "b l"]) -> Int[Array, "b l"]:
        """What the network reads: the source as it is, and the target one place to the right behind a begin token.

        The output at a target position then stands for the token of that position itself.
        """
        shifted = jnp.roll(tokens, 1, axis=1)
        first = target & ~jnp.roll(target, 1, axis=1).at[:, 0].set(False)
        return jnp.where(target, jnp.where(first, self.mask_id, shifted), tokens)

    def losses(self, logits: Float[Array, "b l v"], tokens: Int[Array, "b l"]) -> dict[str, Float[Array, "b l"]]:
        """nll: -log p(token) in nats."""
        return {"nll": log_loss(logits, tokens)}

    def objective(self, logits: Float[Array, "b l v"], tokens: Int[Array, "b l"]) -> Float[Array, "b l"]:
        """What training minimises: the log-loss, labels perhaps smoothed."""
        loss = log_loss(logits, tokens)
        if not self.label_smoothing:
            return loss
        even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        return (1.0 - self.label_smoothing) * loss + self.label_smoothing * even

    def training_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The times themselves: nothing depends on them."""
        return t

    def network_time(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """0: the network knows no time."""
        return jnp.zeros_like(t)

    def at_rest(self) -> Autoregressive:
        """The process itself."""
        return self

    def update(self, t: Float[Array, ...], loss: Float[Array, " b"]) -> Autoregressive:
        """The process itself."""
        return self


def make_autoregressive(config: ProcessConfig, vocab_size: int) -> Autoregressive:
    """The next-token process of a config; the begin token's id follows the vocabulary."""
    return Autoregressive(vocab_size, config.timesteps, config.label_smoothing)
