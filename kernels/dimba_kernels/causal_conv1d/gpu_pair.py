"""Two convolutions in opposite directions on a GPU, each written by its kernel where the pair of scans reads it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.causal_conv1d.gpu import Static, flags_of, gradients, next_tail, outputs

Arrays = tuple[jax.Array, ...]


class _Pair(NamedTuple):
    sizes: tuple[int, int, int]
    silu: bool

    def scan(self, i: int) -> Static:
        return Static(reverse=i == 1, silu=self.silu, resets=False)


def causal_conv1d_pair(
    x: jax.Array,
    x_back: jax.Array,
    w: jax.Array,
    bias: jax.Array,
    *,
    sizes: tuple[int, int, int],
    tail: jax.Array | None,
    tail_back: jax.Array | None,
    mask: jax.Array | None,
    activation: str | None,
) -> Arrays:
    """See `dimba_kernels.causal_conv1d_pair`; all results in one tuple."""
    pair, xs = _Pair(sizes, activation == "silu"), (x, x_back)
    tails = tuple(None if one is None else one.astype(x.dtype) for one in (tail, tail_back))
    flags = flags_of(mask, None, False)
    parts: Arrays = _parts(pair, xs, w, bias, tails, flags)
    return *parts, *(next_tail(pair.scan(i), xs[i], tails[i], flags, w.shape[2]) for i in range(2))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _parts(
    pair: _Pair, xs: Arrays, w: jax.Array, bias: jax.Array, tails: tuple[Any, ...], flags: jax.Array | None
) -> Arrays:
    parts: Arrays = ()
    for i in range(2):
        parts = outputs(pair.scan(i), xs[i], w[i], bias[i], tails[i], flags, pair.sizes, parts)
    return parts


def _forward(pair: _Pair, *arrays: Any) -> tuple[Arrays, tuple[Any, ...]]:
    return _parts(pair, *arrays), arrays


def _backward(pair: _Pair, arrays: tuple[Any, ...], dys: Arrays) -> tuple[Any, ...]:
    xs, w, bias, tails, flags = arrays
    found = [gradients(pair.scan(i), xs[i], w[i], bias[i], tails[i], flags, dys, pair.sizes) for i in range(2)]
    dxs, dws, dbiases, dtails = zip(*found, strict=True)
    return dxs, jnp.stack(dws), jnp.stack(dbiases), dtails, None


_parts.defvjp(_forward, _backward)
