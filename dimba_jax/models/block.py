"""One layer of the backbone: add -> norm -> mixer, then the same around a SwiGLU MLP."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dimba_jax.config import ModelConfig
from dimba_jax.models.conditioning import NORMS, PlainNorm
from dimba_jax.models.linear import Linear
from dimba_jax.models.mixers.build import make_mixer


class SwiGLU(nnx.Module):
    """W_out (silu(W_gate x) * W_up x) (arXiv 2002.05202); both input matmuls are one."""

    def __init__(self, config: ModelConfig, *, residual_scale: float, rngs: nnx.Rngs):
        # two thirds of the ratio, so that three matrices hold as many weights as two would
        hidden = max(8, 8 * round(config.mlp_ratio * config.d_model * 2 / 3 / 8))
        self.in_proj = Linear(config.d_model, 2 * hidden, config, rngs=rngs)
        self.out_proj = Linear(hidden, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        gate, up = jnp.split(self.in_proj(x), 2, axis=-1)
        return self.out_proj(jax.nn.silu(gate) * up)


class Block(nnx.Module):
    """h + mixer(norm(h)), then h + MLP(norm(h)), each norm modulated by the condition c.

    The residual stream is float32; what enters a branch is cast by its first matmul.

    Args:
      mixer: a name of `config.pattern`.
      conditioned: False leaves the modulation out (prompt encoders know no time).
    """

    def __init__(
        self,
        config: ModelConfig,
        mixer: str,
        *,
        conditioned: bool = True,
        residual_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        norm = NORMS[config.modulation] if conditioned else PlainNorm
        self.dropout = config.dropout
        self.mixer_norm = norm(config, rngs=rngs)
        self.mixer = make_mixer(config, mixer, residual_scale=residual_scale, rngs=rngs)
        if config.mlp_ratio > 0:
            self.mlp_norm = norm(config, rngs=rngs)
            self.mlp = SwiGLU(config, residual_scale=residual_scale, rngs=rngs)
        else:
            self.mlp = None

    def __call__(
        self,
        h: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        c: Float[Array, "b c"] | None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        mixer_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x, gate = self.mixer_norm(h, c)
        y, _ = self.mixer(x, mask)
        h = self._add(h, y, gate, mixer_key)
        if self.mlp is not None:
            x, gate = self.mlp_norm(h, c)
            h = self._add(h, self.mlp(x), gate, mlp_key)
        return h

    def _add(self, h: Array, y: Array, gate: Array | None, key: PRNGKeyArray | None) -> Array:
        y = dropout(y.astype(jnp.float32), self.dropout, key)
        return h + y if gate is None else h + gate * y


def dropout(x: Float[Array, "*b d"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*b d"]:
    """Zeroes entries with probability `rate` and rescales the rest; without a key, x itself."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0.0)
