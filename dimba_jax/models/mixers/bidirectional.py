"""Mixers that look both ways, built from one-directional cores. They carry no state.

No sequence is flipped: the kernels scan from the right when asked, and invisible positions leave
both the convolution's window and the state untouched, so padding reaches neither direction.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.linear import Linear
from dimba_jax.models.mixers.core import Core
from dimba_jax.models.mixers.mamba2 import Mamba2Core


class Untied(nnx.Module):
    """Two whole mixers, one a direction, added (DiffuMamba).

    Both input projections are one matmul, and so are both output projections: kernels
    [W_forward | W_backward] over the same input, and [V_forward; V_backward] over the two outputs.
    """

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        self.forward = core(config, rngs=rngs)
        self.backward = core(config, rngs=rngs)
        self.in_proj = Linear(config.d_model, 2 * self.forward.projected, config, rngs=rngs)
        self.out_proj = Linear(2 * self.forward.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None, state: None = None, *, reverse: bool = False
    ) -> tuple[Float[Array, "b l d"], None]:
        _refuse(state, reverse)
        ahead, back = jnp.split(self.in_proj(x), 2, axis=-1)
        y_ahead, _ = self.forward(ahead, mask)
        y_back, _ = self.backward(back, mask, reverse=True)
        return self.out_proj(jnp.concatenate([y_ahead, y_back], axis=-1)), None


class Tied(nnx.Module):
    """Two cores between shared projections (as in Caduceus and MDLM's dimamba)."""

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        self.forward = core(config, rngs=rngs)
        self.backward = core(config, rngs=rngs)
        self.in_proj = Linear(config.d_model, self.forward.projected, config, rngs=rngs)
        self.out_proj = Linear(self.forward.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None, state: None = None, *, reverse: bool = False
    ) -> tuple[Float[Array, "b l d"], None]:
        _refuse(state, reverse)
        projected = self.in_proj(x)
        y_ahead, _ = self.forward(projected, mask)
        y_back, _ = self.backward(projected, mask, reverse=True)
        return self.out_proj(y_ahead + y_back), None


class Shared(nnx.Module):
    """One Mamba-2 core for both directions, scanned by one fused call.

    Raises:
      ConfigError: another core than Mamba-2's, which alone has a fused two-direction scan.
    """

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        if not issubclass(core, Mamba2Core):
            raise ConfigError(
                "config.model.direction='shared' needs mamba2: use pattern=('mamba2',), or direction 'tied' or 'untied'"
            )
        self.core = core(config, rngs=rngs)
        self.in_proj = Linear(config.d_model, self.core.projected, config, rngs=rngs)
        self.out_proj = Linear(self.core.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None, state: None = None, *, reverse: bool = False
    ) -> tuple[Float[Array, "b l d"], None]:
        _refuse(state, reverse)
        return self.out_proj(self.core.both_ways(self.in_proj(x), mask)), None


def _refuse(state: object, reverse: bool) -> None:
    if state is not None or reverse:
        raise ConfigError(
            "a bidirectional mixer carries no state and has no reverse: set config.model.direction='causal'"
        )
