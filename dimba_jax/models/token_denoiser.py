"""The network of token processes: from tokens, some of them masked, to logits at every position.

It knows no schedule, no process and no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from dimba_kernels.sharding import split_rows
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ModelConfig
from dimba_jax.models.conditioning import FilmNorm, Modulation, PlainNorm, TimeEmbedding
from dimba_jax.models.embeddings import SMALL_STD
from dimba_jax.models.linear import Linear, contract
from dimba_jax.models.positions import at_positions, learned_positions
from dimba_jax.models.stack import Layers, Stack


class Cache(NamedTuple):
    """What the network keeps of the positions it has been shown; made by `TokenDenoiser.empty_cache`."""

    layers: Layers
    length: Int[Array, ""]  # how many positions those are


class Surroundings(NamedTuple):
    """What the network keeps of a row around a window of it; made by `TokenDenoiser.refresh`."""

    layers: Layers
    start: Int[Array, ""]  # where the window begins


class TokenDenoiser(nnx.Module):
    """A table of v + 1 rows (the last is MASK, or BOS), the backbone, and a head over the v tokens.

    That the head has no row for MASK is SUBS's mask logit of minus infinity (MDLM, arXiv 2406.07524,
    section 3.2.3). Parameters are float32 `nnx.Param`s; those of matmuls are called `kernel`.

    Args:
      vocab_size: v, the tokenizer's; MASK is not in it.
      source_length: positions of source at the left end of a row; they and the target then have
        learned segment embeddings.
      target_length: positions behind them: how many have an embedding with config.positions="learned".
      time_conditioned: False tells the network t = 0 throughout (MDLM).
      conditioned: False leaves time and all modulation out (autoregressive models).
    """

    calls = 1  # of networks, in one of this; more for an `ensemble.Ensemble`

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocab_size: int,
        source_length: int,
        target_length: int,
        time_conditioned: bool = True,
        conditioned: bool = True,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.vocab_size = self.mask_id = vocab_size
        self.source_length = source_length
        self.time_conditioned = time_conditioned
        d = config.d_model
        self.table = nnx.Param(SMALL_STD * jax.random.normal(rngs.params(), (vocab_size + 1, d)))
        if source_length:
            self.segments = nnx.Param(SMALL_STD * jax.random.normal(rngs.params(), (2, d)))
        self.positions = learned_positions(config, source_length + target_length, rngs)
        self.time = TimeEmbedding(config, rngs=rngs) if conditioned else None
        self.stack = Stack(config, config.layers, conditioned=conditioned, rngs=rngs)
        self.norm: Callable[..., Any] = (FilmNorm if conditioned else PlainNorm)(config, rngs=rngs)
        self.head = Linear(d, vocab_size, config, bias=True, exact=True, rngs=rngs) if config.head == "untied" else None

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        t: Float[Array, " b"] | Float[Array, "b l"],
        *,
        visible: Bool[Array, "b l"] | None = None,
        first: int = 0,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l_minus_first v"]:
        """Logits (float32) at the positions from `first` on.

        Args:
          tokens: ids in [0, v], v being MASK.
          t: diffusion time in [0, 1], of each row or each position.
          visible: False at positions that nothing may see (padding of the source); None is all True.
          first: positions before it are run, but get no logits.
          key: for dropout; None for none.
        """
        c = self._condition(t)
        h = self.stack(self._embed(tokens, 0), visible, c, key)
        return self._logits(h, c, first)

    def empty_cache(self, rows: int, capacity: int) -> Cache:
        """The cache of `rows` rows before any position.

        Args:
          capacity: the most positions it will ever hold; attention takes memory for them.
        """
        return Cache(self.stack.empty(rows, capacity), jnp.zeros((), jnp.int32))

    def extend(
        self,
        tokens: Int[Array, "b k"],
        t: Float[Array, " b"] | Float[Array, "b k"],
        cache: Cache,
        *,
        visible: Bool[Array, "b k"] | None = None,
    ) -> tuple[Float[Array, "b k v"], Cache]:
        """Logits of a segment right behind what the cache holds, and the cache that holds it too.

        The segment sees itself (a causal model: not ahead) and all that is cached. To denoise it, drop the
        returned cache; to commit it, keep the one from its final tokens at t = 0.

        Raises:
          ValueError: more positions than the capacity of attention's cache. Where they overrun it only
            together with those it holds, the logits are NaN.
        """
        c = self._condition(t)
        h, layers = self.stack.extend(self._embed(tokens, cache.length), visible, c, cache.layers)
        return self._logits(h, c), Cache(layers, cache.length + tokens.shape[1])

    def two_streams(
        self,
        noisy: Int[Array, "b l"],
        clean: Int[Array, "b l"],
        t: Float[Array, "b _"],
        *,
        visible: Bool[Array, "b l"] | None = None,
        block_size: int,
        first: int = 0,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l_minus_first v"]:
        """Logits of all noisy blocks, each seeing itself and the clean blocks before it (BD3-LM, arXiv 2503.09573).

        What `extend` gives for a noisy block once the clean ones before it are committed: the clean row is
        at t = 0, and its blocks see themselves and those before. The first `first` positions (the source)
        are its first block, of their own length; their noisy tokens and times are not looked at.

        Args:
          t: a time for each position (b, l), or for each block (b, (l - first) / block_size), which
            costs less.
          key: for dropout; None for none.

        Raises:
          ValueError: blocks that do not fill the row, or times of neither shape.
        """
        b, l = noisy.shape
        count, left = divmod(l - first, block_size)
        if left or count < 1:
            raise ValueError(f"block_size={block_size} does not divide the {l - first} positions behind first={first}")
        if t.shape[1] not in (l, count):
            raise ValueError(f"t has shape {t.shape}: expected ({b}, {l}), a position, or ({b}, {count}), a block")

        def cut(x: Array) -> Array:
            return x[:, first:].reshape(b * count, block_size, *x.shape[2:])

        c = self._condition(cut(t) if t.shape[1] == l else t.reshape(-1))
        at_rest = None if self.time is None else self.time(jnp.zeros(1))
        masks = (None, None) if visible is None else (visible, cut(visible))
        streams = self._embed(clean, 0), cut(self._embed(noisy, 0))
        h = self.stack.two_streams(*streams, masks, (at_rest, c), first, key)
        return self._logits(h, c).reshape(b, l - first, -1)

    def refresh(
        self,
        tokens: Int[Array, "b l"],
        t: Float[Array, " b"] | Float[Array, "b l"],
        start: Int[Array, ""] | int,
        *,
        size: int,
        visible: Bool[Array, "b l"] | None = None,
        first: int = 0,
    ) -> tuple[Float[Array, "b l_minus_first v"], Surroundings]:
        """`__call__`, and what it takes to run the window [start, start + size) again (Fast-dLLM, arXiv 2505.22618).

        Attention keeps the keys and values of all other positions; a state-space layer its forward state
        before the window and its reverse state behind it. The dual cache is a window of one block; the
        prefix cache one that reaches the end of the row, size = l - start, with nothing kept behind it.

        Args:
          start: may be traced; start + size must not exceed l.
        """
        c = self._condition(t)
        h, layers = self.stack.refresh(self._embed(tokens, 0), visible, c, start, size)
        return self._logits(h, c, first), Surroundings(layers, jnp.asarray(start, jnp.int32))

    def window(
        self,
        tokens: Int[Array, "b k"],
        t: Float[Array, " b"] | Float[Array, "b k"],
        surroundings: Surroundings,
        *,
        visible: Bool[Array, "b k"] | None = None,
    ) -> Float[Array, "b k v"]:
        """Logits of the window's positions with other tokens or another t, the rest of the row held as it was.

        Exact while nothing changed since `refresh`; then an approximation wherever information flows back:
        what is kept of the other positions is what they were beside the old window.
        """
        c = self._condition(t)
        h = self.stack.window(self._embed(tokens, surroundings.start), visible, c, surroundings.layers)
        return self._logits(h, c)

    def _condition(self, t: Array) -> Modulation | None:
        if self.time is None:
            return None
        return self.time(t if self.time_conditioned else jnp.zeros(1))

    def _embed(self, tokens: Int[Array, "b l"], start: int | Int[Array, ""]) -> Float[Array, "b l d"]:
        """Inputs of the stack, for tokens whose first stands at position `start` of the row."""
        h = self.table[...][tokens].astype(jnp.float32)  # the residual stream's, whatever the table was cast to
        h = split_rows(h)
        if self.positions is not None:
            h = h + at_positions(self.positions, start, tokens.shape[1])
        if not self.source_length:
            return h
        source, target = self.segments[...]
        in_source = start + jnp.arange(tokens.shape[1]) < self.source_length
        return h + jnp.where(in_source[:, None], source, target)

    def _logits(self, h: Float[Array, "b l d"], c: Modulation | None, first: int = 0) -> Float[Array, "b m v"]:
        if first:
            h, c = h[:, first:], c if c is None or c.ndim == 2 else c[:, first:]
        x = self.norm(h, c).x
        if self.head is not None:
            return split_rows(self.head(x))
        return split_rows(contract(x, self.table[...][: self.vocab_size].T, jnp.dtype(self.config.dtype), exact=True))
