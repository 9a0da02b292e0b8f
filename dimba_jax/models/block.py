"""One layer of the backbone: add -> norm -> mixer, then the same around a SwiGLU MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ModelConfig
from dimba_jax.models.conditioning import NORMS, Branch, Modulation, NoisyModulation, PlainNorm, Stream
from dimba_jax.models.linear import Linear, Part
from dimba_jax.models.mixers.build import make_mixer
from dimba_jax.models.mixers.state import Sides, State


class SwiGLU(nnx.Module):
    """W_out (silu(W_gate x) * W_up x) (arXiv 2002.05202); [W_gate | W_up] is one parameter."""

    def __init__(self, config: ModelConfig, ratio: float, *, residual_scale: float, rngs: nnx.Rngs):
        # two thirds of the ratio, so that three matrices hold as many weights as two would
        hidden = max(8, 8 * round(ratio * config.d_model * 2 / 3 / 8))
        parts = (Part(hidden),) * 2
        self.in_proj = Linear(config.d_model, 2 * hidden, config, parts=parts, together=True, rngs=rngs)
        self.out_proj = Linear(hidden, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        gate, up = self.in_proj.cut(x)
        return self.out_proj(jax.nn.silu(gate) * up)


class Block(nnx.Module):
    """h + mixer(norm(h)), then h + MLP(norm(h)), each norm modulated by the condition c.

    The residual stream is float32; what enters a branch has the compute dtype. A block leaves its last branch to the
    norm of the next one to be added: one pass over the stream less.

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
        ratio = mlp_ratio(config, mixer)
        if ratio > 0:
            self.mlp_norm = norm(config, rngs=rngs)
            self.mlp = SwiGLU(config, ratio, residual_scale=residual_scale, rngs=rngs)
        else:
            self.mlp = None

    def __call__(
        self,
        stream: Stream,
        mask: Bool[Array, "b l"] | None,
        c: Modulation | None,
        key: PRNGKeyArray | None = None,
    ) -> Stream:
        return self._run(stream, c, lambda x: self.mixer(x, mask), key)[0]

    def extend(
        self, stream: Stream, mask: Bool[Array, "b k"] | None, c: Modulation | None, state: State
    ) -> tuple[Stream, State]:
        """A segment that goes on from a state of the mixer, and the state behind it."""
        return self._run(stream, c, lambda x: self.mixer(x, mask, state))

    def refresh(
        self,
        stream: Stream,
        mask: Bool[Array, "b l"] | None,
        c: Modulation | None,
        start: Int[Array, ""] | int,
        size: int,
    ) -> tuple[Stream, Sides]:
        """A row, and what its positions [start, start + size) need of the others; see `Mixer.refresh`."""
        return self._run(stream, c, lambda x: self.mixer.refresh(x, mask, start, size))

    def window(self, stream: Stream, mask: Bool[Array, "b k"] | None, c: Modulation | None, sides: Sides) -> Stream:
        """Those positions anew."""
        return self._run(stream, c, lambda x: (self.mixer.window(x, mask, sides), None))[0]

    def two_streams(
        self,
        clean: Stream,
        noisy: Stream,
        masks: tuple[Bool[Array, "b l"] | None, Bool[Array, "r k"] | None],
        conditions: tuple[Modulation | None, NoisyModulation | None],
        first: int,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Stream, Stream]:
        """A clean row and the noisy blocks of the same row, which see the clean ones; see `Mixer.two_streams`."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        h_clean, x_clean, gate_clean = self.mixer_norm(clean.h, conditions[0], clean.branch)
        h_noisy, x_noisy, gate_noisy = self.mixer_norm(noisy.h, conditions[1], noisy.branch)
        y_clean, y_noisy = self.mixer.two_streams(x_clean, x_noisy, *masks, first)
        return (
            self._feed_forward(h_clean, Branch(y_clean, gate_clean), conditions[0], keys[0], keys[2]),
            self._feed_forward(h_noisy, Branch(y_noisy, gate_noisy), conditions[1], keys[1], keys[3]),
        )

    def _run(
        self,
        stream: Stream,
        c: Modulation | None,
        mix: Callable[[Array], tuple[Array, Any]],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Stream, Any]:
        """Both branches with the mixer run as `mix` says, and the second value of that."""
        mixer_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        h, x, gate = self.mixer_norm(stream.h, c, stream.branch)
        y, kept = mix(x)
        return self._feed_forward(h, Branch(y, gate), c, mixer_key, mlp_key), kept

    def _feed_forward(
        self,
        h: Array,
        mixed: Branch,
        c: Modulation | None,
        mixer_key: PRNGKeyArray | None,
        mlp_key: PRNGKeyArray | None,
    ) -> Stream:
        """The stream with the mixer's branch in it, and the MLP's behind it (the mixer's, if there is no MLP)."""
        mixed = self._dropped_out(mixed, mixer_key)
        if self.mlp is not None:
            h, x, gate = self.mlp_norm(h, c, mixed)
            mixed = self._dropped_out(Branch(self.mlp(x), gate), mlp_key)
        stream = Stream(h, mixed)
        # what dropout leaves is float32, which XLA adds where it makes it and a kernel would have to be given
        return stream if self._keeps_all(mlp_key) else Stream(stream.whole())

    def _dropped_out(self, branch: Branch, key: PRNGKeyArray | None) -> Branch:
        if self._keeps_all(key):
            return branch
        return branch._replace(y=dropout(branch.y.astype(jnp.float32), self.dropout, key))

    def _keeps_all(self, key: PRNGKeyArray | None) -> bool:
        return key is None or self.dropout == 0.0


def mlp_ratio(config: ModelConfig, mixer: str) -> float:
    """The ratio of the MLP beside a mixer of this name; 0: it has none."""
    own = mixer == "attention" and config.attention_mlp_ratio >= 0
    return config.attention_mlp_ratio if own else config.mlp_ratio


def dropout(x: Float[Array, "*b d"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*b d"]:
    """Zeroes entries with probability `rate` and rescales the rest; without a key, x itself."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0.0)
