"""The causal convolution on a GPU: one Triton kernel forward, one backward, by `triton_call`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from dimba_kernels.causal_conv1d import gpu_kernels
from dimba_kernels.causal_conv1d.gpu_tiles import Walk, blocks, tiles
from dimba_kernels.triton_call import triton_call

_WIDTHS = range(2, 9)  # the window is held in registers
_DTYPES = ("float32", "bfloat16", "float16")


class _Static(NamedTuple):
    reverse: bool
    silu: bool
    resets: bool


def unsupported(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    *,
    tail: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    reverse: bool,
    activation: str | None,
) -> str | None:
    """Why these arguments cannot run here, or None."""
    del bias, tail, mask, segments, reverse, activation
    if x.dtype.name not in _DTYPES:
        return f"x is {x.dtype.name}, and the kernels take {', '.join(_DTYPES)}"
    if w.shape[1] not in _WIDTHS:
        return f"the window has width {w.shape[1]}, and the kernels take {_WIDTHS[0]} to {_WIDTHS[-1]}"
    if 0 in x.shape:
        return f"x is empty: {x.shape}"
    if x.shape[0] * (x.shape[1] // 32 + 1) > 65535:  # rows of the grid: blocks of positions are longer than 32
        return f"{x.shape[0]} rows of {x.shape[1]} positions are more than one launch takes"
    return None


def causal_conv1d(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    *,
    tail: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    reverse: bool,
    activation: str | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.causal_conv1d`."""
    flags = _flags(mask, segments, reverse)
    static = _Static(reverse, activation == "silu", segments is not None)
    return _convolution(static, x, w, bias, None if tail is None else tail.astype(x.dtype), flags)


def _flags(mask: jax.Array | None, segments: jax.Array | None, reverse: bool) -> jax.Array | None:
    """(b, l) int8: 1 where valid, plus 2 where the segment is not that of the position before (in scan order)."""
    if mask is None and segments is None:
        return None
    flags = jnp.int8(1) if mask is None else mask.astype(jnp.int8)
    if segments is not None:
        differs = (segments[:, 1:] != segments[:, :-1]).astype(jnp.int8)
        flags += 2 * jnp.pad(differs, ((0, 0), (0, 1) if reverse else (1, 0)))
    return flags


def _device_kind() -> str:
    return jax.devices()[0].device_kind if jax.default_backend() in ("gpu", "cuda") else "NVIDIA H200"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(
    static: _Static, x: jax.Array, w: jax.Array, bias: jax.Array | None, tail: jax.Array | None, flags: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    y = _outputs(static, x, w, bias, tail, flags)
    return y, _next_tail(static, _edge(static, x, w), tail, flags, w.shape[1])


def _forward(static: _Static, *primals: Any) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    arrays = tuple(None if primal is None else primal.value for primal in primals)
    return _convolution(static, *arrays), arrays


def _backward(static: _Static, arrays: tuple[Any, ...], cotangents: tuple[Any, Any]) -> tuple[Any, ...]:
    x, w, bias, tail, flags = arrays
    dy, dtail_next = cotangents
    dy = jnp.zeros(x.shape, x.dtype) if isinstance(dy, SymbolicZero) else dy
    dx, dw, dbias, dtail = _gradients(static, x, w, bias, tail, flags, dy)
    if not isinstance(dtail_next, SymbolicZero):  # nobody goes on from here in most training: no pass for it
        edge = _edge(static, x, w)
        _, pull = jax.vjp(lambda edge, tail: _next_tail(static, edge, tail, flags, w.shape[1]), edge, tail)
        dedge, dtail_passed = pull(dtail_next)
        first = 0 if static.reverse else x.shape[1] - edge.shape[1]
        dx = dx.at[:, first : first + edge.shape[1]].add(dedge)
        dtail = dtail if tail is None else dtail + dtail_passed
    return dx, dw, dbias, dtail, None


_convolution.defvjp(_forward, _backward, symbolic_zeros=True)


def _edge(static: _Static, x: jax.Array, w: jax.Array) -> jax.Array:
    """The last k-1 inputs in the direction of the scan, or fewer where the sequence is shorter."""
    size = min(x.shape[1], w.shape[1] - 1)
    return x[:, :size] if static.reverse else x[:, x.shape[1] - size :]


def _next_tail(static: _Static, edge: jax.Array, tail: jax.Array | None, flags: jax.Array | None, k: int) -> jax.Array:
    """The tail (b, k-1, d) to go on with: zeros where masked, and before the last segment."""
    b, size, d = edge.shape
    tail = jnp.zeros((b, k - 1, d), edge.dtype) if tail is None else tail
    kept = k - 1 - size  # of the old tail
    if flags is None:
        return jnp.concatenate([edge, tail[:, :kept]] if static.reverse else [tail[:, size:], edge], axis=1)
    if static.reverse:  # in the direction of the scan
        edge, tail, flags = edge[:, ::-1], tail[:, ::-1], flags[:, :size][:, ::-1]
    else:
        flags = flags[:, flags.shape[1] - size :]
    valid = jnp.concatenate([jnp.ones((b, kept), bool), flags % 2 == 1], axis=1)
    resets = jnp.concatenate([jnp.zeros((b, kept), bool), flags >= 2], axis=1)
    beyond = jnp.flip(jnp.cumsum(jnp.flip(resets, 1), axis=1), 1) - resets  # resets after each
    values = jnp.concatenate([tail[:, size:], edge], axis=1)
    values = jnp.where((valid & (beyond == 0))[..., None], values, 0)
    return values[:, ::-1] if static.reverse else values


def _outputs(
    static: _Static, x: jax.Array, w: jax.Array, bias: jax.Array | None, tail: jax.Array | None, flags: jax.Array | None
) -> jax.Array:
    b, l, _ = x.shape
    tile = tiles(_device_kind(), *x.shape).forward
    count, span = blocks(l, tile)
    constants, channel_blocks = _constants(static, tile, count, span, x, w, bias, tail, flags)
    (y,) = triton_call(
        gpu_kernels.forward,
        [x, w, *(x if value is None else value for value in (bias, tail, flags))],
        [jax.ShapeDtypeStruct(x.shape, x.dtype)],
        grid=(channel_blocks, b * count),
        constants=constants | {"EVEN": l % span == 0},
        warps=tile.threads // 32,
    )
    return y


def _gradients(
    static: _Static,
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    tail: jax.Array | None,
    flags: jax.Array | None,
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """The gradients of x, w, bias and tail."""
    b, l, d = x.shape
    k = w.shape[1]
    tile = tiles(_device_kind(), *x.shape).backward
    count, span = blocks(l, tile)
    rows = min(b, max(1, tile.positions // span))  # short sequences share a program
    groups = math.ceil(b / rows)
    constants, channel_blocks = _constants(static, tile, count, span, x, w, bias, tail, flags)
    dx, partials, *dtail = triton_call(
        gpu_kernels.backward,
        [x, w, *(x if value is None else value for value in (bias, tail, flags)), dy],
        [
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((groups * count, k + 1, d), jnp.float32),
            jax.ShapeDtypeStruct((b, k - 1, d) if tail is not None else (1,), x.dtype),
        ],
        grid=(channel_blocks, groups * count),
        constants=constants | {"ROWS": rows, "EVEN": l % span == 0 and b % rows == 0},
        warps=tile.threads // 32,
    )
    sums = jnp.sum(partials, axis=0)
    dw = sums[:k][::-1].T.astype(w.dtype)
    return dx, dw, None if bias is None else sums[k].astype(bias.dtype), None if tail is None else dtail[0]


def _constants(
    static: _Static,
    tile: Walk,
    count: int,
    span: int,
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    tail: jax.Array | None,
    flags: jax.Array | None,
) -> tuple[dict[str, Any], int]:
    """What both kernels are compiled for, and the number of blocks of channels."""
    b, l, d = x.shape
    channels = tile.threads * tile.channels
    constants = dict(
        B=b, L=l, D=d, K=w.shape[1], COUNT=count, SPAN=span, CHANNELS=channels, UNROLL=tile.unroll,
        SILU=static.silu, REVERSE=static.reverse, BIAS=bias is not None, TAIL=tail is not None,
        FLAGS=flags is not None, RESETS=static.resets,
    )  # fmt: skip
    return constants, math.ceil(d / channels)
