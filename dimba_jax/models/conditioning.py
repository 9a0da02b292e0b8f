"""How the diffusion time and the pooled prompt enter: their embedding, and norms modulated by it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.linear import Linear
from dimba_jax.models.norm import RMSNorm

TIME_SCALE = 1000.0  # the network sees t in [0, 1] as DDPM's thousand steps
MAX_PERIOD = 10_000.0

Modulation = Float[Array, "#b c"] | Float[Array, "#b l c"]  # c of a row (one row: of all rows), or of each position
NoisyModulation = Float[Array, "#r c"] | Float[Array, "#r k c"]  # the same of noisy blocks, beside a clean row


class TimeEmbedding(nnx.Module):
    """c = silu(MLP(sinusoidal(1000 t)) + pooled prompt): the vector every block is modulated by.

    One time (and so one c) a row, or one a position.

    Raises:
      ConfigError: the width of c is odd (sines and cosines come in pairs).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        if config.condition_width % 2:
            raise ConfigError(f"config.model.condition_dim (or d_model) = {config.condition_width}: must be even")
        self.size = config.condition_width
        self.hidden = Linear(self.size, self.size, config, bias=True, rngs=rngs)
        self.out = Linear(self.size, self.size, config, bias=True, rngs=rngs)

    def __call__(self, t: Float[Array, "*b"], pooled: Float[Array, "*b c"] | None = None) -> Float[Array, "*b c"]:
        c = self.out(jax.nn.silu(self.hidden(sinusoidal(TIME_SCALE * t, self.size)))).astype(jnp.float32)
        return jax.nn.silu(c if pooled is None else c + pooled)


def sinusoidal(x: Float[Array, "*b"], size: int) -> Float[Array, "*b d"]:
    """[cos(x w), sin(x w)] with size/2 frequencies w from 1 down to 1/10000."""
    w = jnp.exp(-math.log(MAX_PERIOD) * jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angle = x.astype(jnp.float32)[..., None] * w
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class PlainNorm(nnx.Module):
    """A norm that nothing modulates. All of these map (h, c) to (input of the branch, gate or None)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(config.d_model)

    def __call__(self, h: Float[Array, "b l d"], c: Modulation | None) -> tuple[Float[Array, "b l d"], None]:
        return self.norm(h), None


class FilmNorm(nnx.Module):
    """norm(h) * gamma(c) + beta(c), with gamma = 1 and beta = 0 at the start (DIMBA's FiLM)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(config.d_model)
        self.modulation = _zero_linear(config, 2, rngs)

    def __call__(self, h: Float[Array, "b l d"], c: Modulation) -> tuple[Float[Array, "b l d"], None]:
        gamma, beta = _parts(self.modulation(c), 2)
        return self.norm(h) * (1 + gamma) + beta, None


class AdditiveNorm(nnx.Module):
    """norm(h) + beta(c), with beta = 0 at the start."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(config.d_model)
        self.modulation = _zero_linear(config, 1, rngs)

    def __call__(self, h: Float[Array, "b l d"], c: Modulation) -> tuple[Float[Array, "b l d"], None]:
        (beta,) = _parts(self.modulation(c), 1)
        return self.norm(h) + beta, None


class AdaLNZeroNorm(nnx.Module):
    """FiLM, and a gate on the branch's output that starts at 0 (DiT, arXiv 2212.09748, section 3.2)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(config.d_model)
        self.modulation = _zero_linear(config, 3, rngs)

    def __call__(
        self, h: Float[Array, "b l d"], c: Modulation
    ) -> tuple[Float[Array, "b l d"], Float[Array, "#b #l d"]]:
        gamma, beta, gate = _parts(self.modulation(c), 3)
        return self.norm(h) * (1 + gamma) + beta, gate


NORMS = {"film": FilmNorm, "additive": AdditiveNorm, "adaln_zero": AdaLNZeroNorm}


def _zero_linear(config: ModelConfig, parts: int, rngs: nnx.Rngs) -> Linear:
    return Linear(config.condition_width, parts * config.d_model, config, bias=True, scale=0.0, rngs=rngs)


def _parts(modulation: Float[Array, "*b _"], parts: int) -> list[Float[Array, "#b #l d"]]:
    modulation = modulation if modulation.ndim == 3 else modulation[:, None]
    return jnp.split(modulation.astype(jnp.float32), parts, axis=-1)
