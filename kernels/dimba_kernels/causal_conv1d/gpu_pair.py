"""Two convolutions in opposite directions on a GPU, each written by its kernel where the pair of scans reads it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from dimba_kernels.causal_conv1d.gpu import (
    Static,
    edge_of,
    flags_of,
    gradients,
    next_tail,
    outputs,
    with_tail_gradient,
)

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
    tails = tuple(None if one is None else one.astype(x.dtype) for one in (tail, tail_back))
    return _pair(_Pair(sizes, activation == "silu"), (x, x_back), w, bias, tails, flags_of(mask, None, False))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair(
    pair: _Pair, xs: Arrays, w: jax.Array, bias: jax.Array, tails: tuple[Any, ...], flags: jax.Array | None
) -> Arrays:
    parts: Arrays = ()
    following = []
    for i in range(2):
        scan = pair.scan(i)
        parts = outputs(scan, xs[i], w[i], bias[i], tails[i], flags, pair.sizes, parts)
        following.append(next_tail(scan, edge_of(scan, xs[i], w[i]), tails[i], flags, w.shape[2]))
    return *parts, *following


def _forward(pair: _Pair, *primals: Any) -> tuple[Arrays, tuple[Any, ...]]:
    arrays = jax.tree.map(lambda primal: primal.value, primals, is_leaf=lambda primal: hasattr(primal, "perturbed"))
    return _pair(pair, *arrays), arrays


def _backward(pair: _Pair, arrays: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
    xs, w, bias, tails, flags = arrays
    dys = tuple(jnp.zeros(dy.shape, xs[0].dtype) if isinstance(dy, SymbolicZero) else dy for dy in cotangents[:3])
    found = []
    for i, dtail_next in enumerate(cotangents[3:]):
        scan, (x, tail) = pair.scan(i), (xs[i], tails[i])
        dx, dw, dbias, dtail = gradients(scan, x, w[i], bias[i], tail, flags, dys, pair.sizes)
        dx, dtail = with_tail_gradient(scan, x, w[i], tail, flags, dtail_next, dx, dtail)
        found.append((dx, dw, dbias, dtail))
    dxs, dws, dbiases, dtails = zip(*found, strict=True)
    return dxs, jnp.stack(dws), jnp.stack(dbiases), dtails, None


_pair.defvjp(_forward, _backward, symbolic_zeros=True)
