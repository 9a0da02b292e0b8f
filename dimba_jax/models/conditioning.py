"""How the diffusion time and the pooled prompt enter: their embedding, and norms modulated by it."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from dimba_kernels import Implementation
from flax import nnx
from jaxtyping import Array, Float

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.linear import Linear
from dimba_jax.models.mixers.core import kernel_choice
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


class Branch(NamedTuple):
    """What a branch of a block has computed, to be added to the stream: gate * y."""

    y: Float[Array, "b l d"]
    gate: Float[Array, "#b #l d"] | None = None


class Stream(NamedTuple):
    """The residual stream, float32, and the branch that is still to be added to it: by the next norm, on its way."""

    h: Float[Array, "b l d"]
    branch: Branch | None = None

    def whole(self) -> Float[Array, "b l d"]:
        """The branch added."""
        if self.branch is None:
            return self.h
        y = self.branch.y.astype(jnp.float32)
        return self.h + (y if self.branch.gate is None else self.branch.gate * y)


class Normed(NamedTuple):
    """The stream with the branch before in it, the input of the next branch, and that one's gate."""

    h: Float[Array, "b l d"]
    x: Float[Array, "b l d"]
    gate: Float[Array, "#b #l d"] | None


class BlockNorm(nnx.Module):
    """norm(h + branch), in front of a branch; a kind says what of it c modulates."""

    modulates: ClassVar[tuple[str, ...]] = ()  # what is made of c, in the order of its columns

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(config.d_model)
        self.dtype = jnp.dtype(config.dtype)
        self.implementation: Implementation | None = kernel_choice(config)
        if self.modulates:
            parts = len(self.modulates) * config.d_model
            self.modulation = Linear(config.condition_width, parts, config, bias=True, scale=0.0, rngs=rngs)

    def __call__(self, h: Float[Array, "b l d"], c: Modulation | None, branch: Branch | None = None) -> Normed:
        by: dict[str, Array] = {}
        if self.modulates:
            if c is None:
                raise ValueError("a block that a condition modulates was given none")
            modulation = self.modulation(c).astype(jnp.float32)
            modulation = modulation if modulation.ndim == 3 else modulation[:, None]
            by = dict(zip(self.modulates, jnp.split(modulation, len(self.modulates), axis=-1), strict=True))
        y, before = (None, None) if branch is None else branch
        h, x = self.norm.modulated(
            h, y, before, scale=by.get("scale"), shift=by.get("shift"),
            dtype=self.dtype, implementation=self.implementation,
        )  # fmt: skip
        return Normed(h, x, by.get("gate"))


class PlainNorm(BlockNorm):
    """A norm that nothing modulates."""


class FilmNorm(BlockNorm):
    """norm(h) * gamma(c) + beta(c), with gamma = 1 and beta = 0 at the start (DIMBA's FiLM)."""

    modulates = ("scale", "shift")


class AdditiveNorm(BlockNorm):
    """norm(h) + beta(c), with beta = 0 at the start."""

    modulates = ("shift",)


class AdaLNZeroNorm(BlockNorm):
    """FiLM, and a gate on the branch's output that starts at 0 (DiT, arXiv 2212.09748, section 3.2)."""

    modulates = ("scale", "shift", "gate")


NORMS = {"film": FilmNorm, "additive": AdditiveNorm, "adaln_zero": AdaLNZeroNorm}
