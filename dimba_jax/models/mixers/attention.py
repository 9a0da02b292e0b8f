"""Multi-head attention with rotary positions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from dimba_kernels.dispatch import CAPABILITY, cuda_plugin
from dimba_kernels.sharding import splits_positions
from dimba_kernels.ssd.matmul import matmul
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.linear import Linear, Part
from dimba_jax.models.mixers.core import SAVED, target_platform
from dimba_jax.models.mixers.state import KVCache

ROTARY_BASE = 10_000.0
FEW = 64  # queries of a segment whose scores over a cache are worth writing out


class Attention(nnx.Module):
    """Softmax attention over the visible positions, of all of them or (causal) of those not ahead; see `Mixer`.

    Scores and softmax are float32. Half precision on a GPU takes cuDNN's flash attention where it can, whose memory
    does not grow with the square of the length (config.model.implementation "auto" or "gpu"). Positions count from 0 at
    the left end of the row, and go on in a segment from the cache's length.

    Raises:
      ConfigError: head_dim is odd or does not divide d_model.
    """

    def __init__(self, config: ModelConfig, *, causal: bool, residual_scale: float = 1.0, rngs: nnx.Rngs):
        if config.d_model % config.head_dim or config.head_dim % 2:
            raise ConfigError(
                f"config.model.head_dim={config.head_dim}: attention needs an even divisor of d_model={config.d_model}"
            )
        self.heads, self.head_dim = config.d_model // config.head_dim, config.head_dim
        self.causal = causal
        self.dtype = jnp.dtype(config.dtype)
        self.may_fuse = config.implementation in ("auto", "gpu")
        parts = (Part(config.d_model),) * 3
        self.in_proj = Linear(config.d_model, 3 * config.d_model, config, parts=parts, together=True, rngs=rngs)
        self.out_proj = Linear(config.d_model, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        state: KVCache | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l d"], KVCache | None]:
        """See `Mixer`. A segment that overruns the cache's capacity is NaN throughout.

        Raises:
          ValueError: a segment longer than the capacity, or `reverse` with a state.
        """
        if state is not None:
            if reverse:
                raise ValueError("attention goes on from a state to the right only: expected reverse=False")
            return self._extend(x, mask, state)
        return self._row(*self._project(x, 0), mask, reverse=reverse), None

    def initial_state(self, rows: int, capacity: int) -> KVCache:
        """An empty cache of `capacity` positions."""
        keys, values = jnp.zeros((2, rows, capacity, self.heads, self.head_dim), self.dtype)
        return KVCache(keys, values, jnp.zeros((rows, capacity), bool), jnp.zeros((), jnp.int32))

    def two_streams(
        self,
        clean: Float[Array, "b l d"],
        noisy: Float[Array, "r k d"],
        mask: Bool[Array, "b l"] | None,
        noisy_mask: Bool[Array, "r k"] | None,
        first: int,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "r k d"]]:
        """BD3-LM's masks (arXiv 2503.09573, section 4.1), as one for each stream's queries."""
        b, l, d = clean.shape
        rest = l - first
        place = jnp.arange(l)
        block = jnp.where(place < first, 0, 1 + (place - first) // noisy.shape[1])
        clean_q, clean_k, clean_v = self._project(clean, 0)
        q, k, v = self._project(noisy.reshape(b, rest, d), first)
        clean_seen, seen = block[:, None] >= block, block[first:, None] == block[first:]
        if self.causal:
            order = place[:, None] >= place
            clean_seen, seen = clean_seen & order, seen & order[:rest, :rest]
        before = block[first:, None] > block
        clean_mask = None if mask is None else mask[:, None]
        noisy_mask = None if noisy_mask is None else noisy_mask.reshape(b, 1, rest)
        y_clean = self._attend(clean_q, clean_k, clean_v, _both(clean_seen[None], clean_mask))
        before, seen = (_both(a[None], m) for a, m in ((before, clean_mask), (seen, noisy_mask)))
        rows = max(before.shape[0], seen.shape[0])
        seen = jnp.concatenate([jnp.broadcast_to(a, (rows, *a.shape[1:])) for a in (before, seen)], axis=-1)
        keys, values = jnp.concatenate([clean_k, k], axis=1), jnp.concatenate([clean_v, v], axis=1)
        return y_clean, self._attend(q, keys, values, seen).reshape(noisy.shape)

    def refresh(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None, start: Int[Array, ""] | int, size: int
    ) -> tuple[Float[Array, "b l d"], KVCache]:
        """See `Mixer`. What is kept is the whole row: a window overwrites its own positions."""
        q, k, v = self._project(x, 0)
        valid = jnp.ones(x.shape[:2], bool) if mask is None else mask
        cache = KVCache(k.astype(self.dtype), v.astype(self.dtype), valid, jnp.asarray(start, jnp.int32))
        return self._row(q, k, v, mask), cache

    def window(
        self, x: Float[Array, "b k d"], mask: Bool[Array, "b k"] | None, sides: KVCache
    ) -> Float[Array, "b k d"]:
        return self._extend(x, mask, sides)[0]

    def _row(self, q: Array, k: Array, v: Array, mask: Bool[Array, "b l"] | None, *, reverse: bool = False) -> Array:
        """A whole row."""
        seen = None if mask is None else mask[:, None]
        if self.causal and seen is None and not reverse:
            return self._attend(q, k, v, None, causal=True)
        if self.causal:
            order = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
            seen = _both((order.T if reverse else order)[None], seen)
        return self._attend(q, k, v, seen)

    def _extend(
        self, x: Float[Array, "b k d"], mask: Bool[Array, "b k"] | None, cache: KVCache
    ) -> tuple[Float[Array, "b k d"], KVCache]:
        b, size, _ = x.shape
        capacity = cache.keys.shape[1]
        if size > capacity:
            raise ValueError(f"a segment of {size} positions: the cache holds {capacity}; make it with more capacity")
        q, k, v = self._project(x, cache.length)

        def put(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cache.length, axis=1)

        own = jnp.ones((b, size), bool) if mask is None else mask
        end, place = cache.length + size, jnp.arange(capacity)
        after = KVCache(put(cache.keys, k), put(cache.values, v), put(cache.valid, own), end)
        if 1 < size <= FEW and (b == 1 or target_platform() != "gpu"):
            # the cache as it came in and the segment beside it, so that a call whose `after` nobody reads, a step of a
            # block, copies no cache; and cuDNN's attention, a program for each row and head, leaves a GPU empty of so
            # few queries. There two rows and more are faster with cuDNN: for matmuls XLA would transpose all of their
            # caches, and keep the copies. For one query XLA fuses the update into what reads it
            others = cache.valid & ((place < cache.length) | (place >= end))
            if self.causal:
                others = others & (place < cache.length)
            order = jnp.tril(jnp.ones((1, size, size), bool)) if self.causal else None
            parts = (cache.keys, cache.values, others[:, None]), (k, v, _both(own[:, None], order))
            y = self.out_proj(attend_parts(q, parts).reshape(b, size, -1))
        else:
            seen = after.valid[:, None]
            if self.causal:
                seen = seen & (place <= (end - size + jnp.arange(size))[:, None])
            y = self._attend(q, after.keys, after.values, seen)
        # the update would move back to fit, over positions still needed: an unusable result is better than a wrong one
        return jnp.where(end <= capacity, y, jnp.nan), after

    def _project(self, x: Float[Array, "b l d"], start: Int[Array, ""] | int) -> tuple[Array, Array, Array]:
        """Queries, keys and values (b, l, h, p) of positions from `start` on, rotated."""
        q, k, v = (a.reshape(*x.shape[:2], self.heads, -1) for a in self.in_proj.cut(x))
        return checkpoint_name(rotate(q, start), SAVED), checkpoint_name(rotate(k, start), SAVED), v

    def _attend(
        self,
        q: Float[Array, "b l h p"],
        k: Float[Array, "b m h p"],
        v: Float[Array, "b m h p"],
        seen: Bool[Array, "#b #l m"] | None,
        *,
        causal: bool = False,
    ) -> Float[Array, "b l d"]:
        implementation = "cudnn" if self.may_fuse and flash_runs(q, k, masked=seen is not None) else None
        if seen is not None:
            if implementation:  # which wants a mask of every query
                seen = jnp.broadcast_to(seen, (seen.shape[0], q.shape[1], seen.shape[2]))
            seen = seen[:, None]
        with jax.named_scope("attention"):
            y = jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=causal, implementation=implementation)
        return self.out_proj(y.reshape(*y.shape[:2], -1))


def flash_runs(q: Float[Array, "b l h p"], k: Float[Array, "b m h p"], *, masked: bool) -> bool:
    """Whether cuDNN's flash attention takes these on the device that runs here, or that is lowered for where JAX's CUDA
    plugin is and no GPU; one query is not worth it."""
    if target_platform() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    if splits_positions():  # which it refuses
        return False
    if jax.default_backend() == "gpu":
        capability = getattr(jax.local_devices(backend="gpu")[0], "compute_capability", "0.0")
    else:
        capability = CAPABILITY if cuda_plugin() else "0.0"
    lengths = q.shape[1], k.shape[1]
    return (
        float(capability) >= 8.0
        and q.shape[3] % 8 == 0
        and q.shape[3] <= 128
        and lengths[0] > 1
        and (not masked or all(length % 2 == 0 for length in lengths))
    )


def attend_parts(q: Float[Array, "b l h p"], parts: Sequence[tuple[Array, Array, Array]]) -> Float[Array, "b l h p"]:
    """Softmax attention over keys that lie in several arrays, as if they were one; scores are written out.

    Args:
      parts: keys (b, m, h, p), values (b, m, h, p) and who sees them, Bool (b or 1, l or 1, m), of each array.

    Returns:
      Of q's dtype. A query that sees nothing takes the mean of all values.
    """
    hidden = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a query that sees nothing must not become NaN
    scores = [
        jnp.where(seen[:, None], q.shape[-1] ** -0.5 * matmul("blhp,bmhp->bhlm", q, k.astype(q.dtype)), hidden)
        for k, _, seen in parts
    ]
    most = functools.reduce(jnp.maximum, [jnp.max(score, axis=-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - most) for score in scores]
    total = functools.reduce(jnp.add, [jnp.sum(weight, axis=-1) for weight in weights])
    sums = [
        matmul("bhlm,bmhp->blhp", weight.astype(q.dtype), v.astype(q.dtype))
        for weight, (_, v, _) in zip(weights, parts, strict=True)
    ]
    return (functools.reduce(jnp.add, sums) / total.swapaxes(1, 2)[..., None]).astype(q.dtype)


def _both(a: Bool[Array, "#b #l m"], b: Bool[Array, "#b #l m"] | None) -> Bool[Array, "#b #l m"]:
    return a if b is None else a & b


def rotate(x: Float[Array, "b l h p"], start: Int[Array, ""] | int = 0) -> Float[Array, "b l h p"]:
    """Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34), feature i paired with i + p/2.

    Args:
      start: the position of the first of them.
    """
    l, half = x.shape[1], x.shape[3] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = ((start + jnp.arange(l)).astype(jnp.float32)[:, None] * frequency)[:, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
