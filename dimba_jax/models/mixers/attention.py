"""Multi-head attention with rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.linear import Linear
from dimba_jax.models.mixers.core import ScanState

ROTARY_BASE = 10_000.0


class Attention(nnx.Module):
    """Softmax attention over the visible positions, of all of them or (causal) of those not ahead.

    Scores and softmax are float32. Positions count from 0 at the left end of the row.

    Raises:
      ConfigError: head_dim is odd or does not divide d_model.
    """

    def __init__(self, config: ModelConfig, *, causal: bool, residual_scale: float = 1.0, rngs: nnx.Rngs):
        if config.d_model % config.head_dim or config.head_dim % 2:
            raise ConfigError(
                f"config.model.head_dim={config.head_dim}: attention needs an even divisor of d_model={config.d_model}"
            )
        self.heads = config.d_model // config.head_dim
        self.causal = causal
        self.in_proj = Linear(config.d_model, 3 * config.d_model, config, rngs=rngs)
        self.out_proj = Linear(config.d_model, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l d"], None]:
        if state is not None:
            raise ValueError("attention carries no scan state: expected state=None")
        b, l, d = x.shape
        q, k, v = (a.reshape(b, l, self.heads, -1) for a in jnp.split(self.in_proj(x), 3, axis=-1))
        visible = None if mask is None else mask[:, None, None, :]
        if self.causal:
            order = jnp.tril(jnp.ones((l, l), bool))
            order = (order.T if reverse else order)[None, None]
            visible = order if visible is None else order & visible
        y = jax.nn.dot_product_attention(rotate(q), rotate(k), v, mask=visible)
        return self.out_proj(y.reshape(b, l, d)), None


def rotate(x: Float[Array, "b l h p"]) -> Float[Array, "b l h p"]:
    """Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34), feature i paired with i + p/2."""
    l, half = x.shape[1], x.shape[3] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (jnp.arange(l, dtype=jnp.float32)[:, None] * frequency)[:, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
