"""The causal convolution on a GPU: one Triton kernel forward, one backward, by `triton_call`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.causal_conv1d import gpu_backward, gpu_forward
from dimba_kernels.causal_conv1d.gpu_tiles import Tiles, Walk, blocks, tiles
from dimba_kernels.triton_call import triton_call

_WIDTHS = range(2, 9)  # the window is held in registers
_DTYPES = ("float32", "bfloat16", "float16")


class Static(NamedTuple):
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
    flags = flags_of(mask, segments, reverse)
    static = Static(reverse, activation == "silu", segments is not None)
    tail = None if tail is None else tail.astype(x.dtype)
    return _convolution(static, x, w, bias, tail, flags), next_tail(static, x, tail, flags, w.shape[1])


def flags_of(mask: jax.Array | None, segments: jax.Array | None, reverse: bool) -> jax.Array | None:
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
    static: Static, x: jax.Array, w: jax.Array, bias: jax.Array | None, tail: jax.Array | None, flags: jax.Array | None
) -> jax.Array:
    return outputs(static, x, w, bias, tail, flags)[0]


def _forward(static: Static, *arrays: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    return _convolution(static, *arrays), arrays


def _backward(static: Static, arrays: tuple[Any, ...], dy: jax.Array) -> tuple[Any, ...]:
    x, w, bias, tail, flags = arrays
    return *gradients(static, x, w, bias, tail, flags, (dy,)), None


_convolution.defvjp(_forward, _backward)


def next_tail(static: Static, x: jax.Array, tail: jax.Array | None, flags: jax.Array | None, k: int) -> jax.Array:
    """The tail (b, k-1, d) to go on with: zeros where masked, and before the last segment.

    Not a part of what has a derivative of its own: under `vmap`, JAX would count its gradient once for each element.
    """
    size = min(x.shape[1], k - 1)  # of the last inputs in the direction of the scan
    edge = x[:, :size] if static.reverse else x[:, x.shape[1] - size :]
    b, _, d = edge.shape
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


def outputs(
    static: Static,
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    tail: jax.Array | None,
    flags: jax.Array | None,
    sizes: tuple[int, ...] = (),
    started: tuple[jax.Array, ...] = (),
) -> tuple[jax.Array, ...]:
    """(y,); given sizes, y in parts (2, b, l, size), of which the one scan has `started` those the other one ends."""
    b, l, _ = x.shape
    tile = tiles_of(x.shape, sizes).forward
    count, span = blocks(l, tile)
    constants, channel_blocks = _constants(static, tile, count, span, x, w, bias, tail, flags, sizes)
    inputs = [x, w, *(x if value is None else value for value in (bias, tail, flags))]
    if sizes and not started:
        inputs += [x] * len(sizes)  # in the places of what is not there yet
    return triton_call(
        gpu_forward.forward_parts if sizes else gpu_forward.forward,
        inputs,
        [jax.ShapeDtypeStruct((2, b, l, size) if sizes else x.shape, x.dtype) for size in sizes or (0,)],
        grid=(channel_blocks, b * count),
        constants=constants | {"EVEN": l % span == 0},
        warps=tile.threads // 32,
        unfinished=started,
    )


def gradients(
    static: Static,
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    tail: jax.Array | None,
    flags: jax.Array | None,
    dys: tuple[jax.Array, ...],
    sizes: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """The gradients of x, w, bias and tail, from those of the results of `outputs`."""
    b, l, d = x.shape
    k = w.shape[1]
    tile = tiles_of(x.shape, sizes).backward
    count, span = blocks(l, tile)
    rows = min(b, max(1, tile.positions // span))  # short sequences share a program
    groups = math.ceil(b / rows)
    constants, channel_blocks = _constants(static, tile, count, span, x, w, bias, tail, flags, sizes)
    dx, partials, *dtail = triton_call(
        gpu_backward.backward_parts if sizes else gpu_backward.backward,
        [x, w, *(x if value is None else value for value in (bias, tail, flags)), *dys],
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


def tiles_of(shape: tuple[int, ...], sizes: tuple[int, ...] = ()) -> Tiles:
    """The tiles for x of this shape, in parts of these sizes."""
    b, l, d = shape
    return tiles(_device_kind(), b, l, d, sizes)


def _constants(
    static: Static,
    tile: Walk,
    count: int,
    span: int,
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    tail: jax.Array | None,
    flags: jax.Array | None,
    sizes: tuple[int, ...],
) -> tuple[dict[str, Any], int]:
    """What both kernels are compiled for, and the number of blocks of channels."""
    b, l, d = x.shape
    channels = tile.threads * tile.channels
    constants = dict(
        B=b, L=l, D=d, K=w.shape[1], COUNT=count, SPAN=span, CHANNELS=channels, UNROLL=tile.unroll,
        SILU=static.silu, REVERSE=static.reverse, BIAS=bias is not None, TAIL=tail is not None,
        FLAGS=flags is not None, RESETS=static.resets,
    )  # fmt: skip
    if any(size % channels for size in sizes):
        raise ValueError(f"causal_conv1d: blocks of {channels} channels do not divide the sizes {sizes}")
    constants |= {f"SIZE_{i}": size for i, size in enumerate(sizes)}
    return constants, math.ceil(d / channels)
