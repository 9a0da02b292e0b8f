"""From the names a configuration uses to a mixer."""

from __future__ import annotations

from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.mixers.attention import Attention
from dimba_jax.models.mixers.core import Mixer
from dimba_jax.models.mixers.mamba import MambaCore
from dimba_jax.models.mixers.mamba2 import Mamba2Core
from dimba_jax.models.mixers.scanning import Causal, Shared, Tied, Untied

_CORES = {"mamba": MambaCore, "mamba2": Mamba2Core}
_DIRECTIONS = {"causal": Causal, "untied": Untied, "tied": Tied, "shared": Shared}


def make_mixer(config: ModelConfig, name: str, *, residual_scale: float = 1.0, rngs: nnx.Rngs) -> Mixer:
    """The mixer called `name` in `config.pattern`, looking where `config.direction` says.

    Args:
      residual_scale: factor on the output projection's initial weights, 1/sqrt(residual branches).
    """
    if name == "attention":
        causal = config.direction == "causal"
        return Attention(config, causal=causal, residual_scale=residual_scale, rngs=rngs)
    return _DIRECTIONS[config.direction](_CORES[name], config, residual_scale=residual_scale, rngs=rngs)
