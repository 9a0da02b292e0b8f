"""What is measured: operations, shapes, random arguments, and the work that each takes at the least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

import dimba_kernels

Sizes = dict[str, int]
Arrays = dict[str, jax.Array]
_COUNTED_CHUNK = 64  # positions; what the matmuls of the chunked form are counted with


@dataclass(frozen=True)
class Work:
    """Multiplications and additions, and exponentials, of one forward pass or of a forward and a backward."""

    flops: int
    exps: int


@dataclass(frozen=True)
class Kind:
    """An operation: its function, its named shapes, how its arguments are drawn, and the work of a direction."""

    function: Callable[..., Any]
    shapes: dict[str, Sizes]
    draw: Callable[[Sizes, Any, jax.Array], Arrays]
    work: Callable[[Sizes, bool], Work]
    reduced: Sizes  # to check against float64: many chunks, an odd end
    statics: dict[str, Any] = field(default_factory=dict)
    # another operation whose time, so many times over, this one is to beat
    instead_of: tuple[str, int] | None = None


def _normal(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _ssd(sizes: Sizes, dtype: Any, key: jax.Array, ways: tuple[int, ...] = ()) -> Arrays:
    """x, B, C in `dtype`; dt in (0.001, 0.1) and A in (-16, -1), as Mamba-2 starts with."""
    b, l, h, p, n, g = (sizes[name] for name in "blhpng")
    keys = jax.random.split(key, 6)
    return {
        "x": _normal(keys[0], *ways, b, l, h, p).astype(dtype),
        "dt": jnp.exp(jax.random.uniform(keys[1], (*ways, b, l, h), minval=jnp.log(1e-3), maxval=jnp.log(1e-1))),
        "A": -jax.random.uniform(keys[2], (*ways, h), minval=1.0, maxval=16.0),
        "B": _normal(keys[3], *ways, b, l, g, n).astype(dtype),
        "C": _normal(keys[4], *ways, b, l, g, n).astype(dtype),
        "D": _normal(keys[5], *ways, h),
    }


def _ssd_work(sizes: Sizes, backward: bool, ways: int = 1) -> Work:
    """The matmuls of the chunked form, all of each square counted, B and C of a group once for its heads."""
    b, l, h, p, n, g = (sizes[name] for name in "blhpng")
    q = _COUNTED_CHUNK
    # CB', (CB'.L)X, the chunk's state, its output
    flops = g * 2 * q * n + h * (2 * q * p + 4 * n * p)
    if backward:
        # again CB' and the states; the states' gradients; of x, B and C inside a chunk and through the states
        flops += g * 6 * q * n + h * (4 * q * p + 10 * n * p)
    return Work(ways * b * l * flops, ways * b * l * h * (2 if backward else 1))


def _selective_scan(sizes: Sizes, dtype: Any, key: jax.Array) -> Arrays:
    """dt before its softplus; all of the block's sequences in `dtype`."""
    b, l, d, n = (sizes[name] for name in "bldn")
    keys = jax.random.split(key, 7)
    steps = jnp.exp(jax.random.uniform(keys[1], (d,), minval=jnp.log(1e-3), maxval=jnp.log(1e-1)))
    return {
        "u": _normal(keys[0], b, l, d).astype(dtype),
        "dt": (0.5 * _normal(keys[2], b, l, d)).astype(dtype),
        "A": -jnp.broadcast_to(jnp.arange(1.0, n + 1), (d, n)),
        "B": _normal(keys[3], b, l, n).astype(dtype),
        "C": _normal(keys[4], b, l, n).astype(dtype),
        "D": _normal(keys[5], d),
        "z": _normal(keys[6], b, l, d).astype(dtype),
        "dt_bias": jnp.log(jnp.expm1(steps)),
    }


def _selective_scan_work(sizes: Sizes, backward: bool) -> Work:
    """Six operations a state forward (decay, two products of the input, state, output), three times that both ways."""
    states = sizes["b"] * sizes["l"] * sizes["d"] * sizes["n"]
    return Work(states * (18 if backward else 6), states * (2 if backward else 1))


def _convolution(sizes: Sizes, dtype: Any, key: jax.Array) -> Arrays:
    keys = jax.random.split(key, 3)
    b, l, d, k = (sizes[name] for name in "bldk")
    return {
        "x": _normal(keys[0], b, l, d).astype(dtype),
        "w": _normal(keys[1], d, k),
        "bias": _normal(keys[2], d),
    }


def _convolution_work(sizes: Sizes, backward: bool) -> Work:
    elements = sizes["b"] * sizes["l"] * sizes["d"]
    return Work(elements * sizes["k"] * (8 if backward else 2), elements * (2 if backward else 1))


def _heads(b: int, l: int, h: int, p: int = 64, n: int = 128, g: int = 1) -> Sizes:
    return dict(b=b, l=l, h=h, p=p, n=n, g=g)


def _channels(b: int, l: int, d: int, **more: int) -> Sizes:
    return dict(b=b, l=l, d=d) | more


_SSD_SHAPES = {
    "8x2048xH60": _heads(8, 2048, 60),
    "16x1024xH30": _heads(16, 1024, 30),
    "1x32768xH60": _heads(1, 32768, 60),
    "1x131072xH60": _heads(1, 131072, 60),
    "512x64xH16": _heads(512, 64, 16, n=64),
    "tiny": _heads(2, 37, 4, 8, 16),
}
_BOTH_WAYS_SHAPES = {name: _SSD_SHAPES[name] for name in ("8x2048xH60", "16x1024xH30", "1x32768xH60", "tiny")}

KINDS = {
    "ssd": Kind(dimba_kernels.ssd, _SSD_SHAPES, _ssd, _ssd_work, _heads(1, 333, 4, 64, 128)),
    "ssd_bidirectional": Kind(
        dimba_kernels.ssd_bidirectional,
        _BOTH_WAYS_SHAPES,
        _ssd,
        _ssd_work,
        _heads(1, 333, 4, 64, 128),
        instead_of=("ssd", 2),
    ),
    "ssd_pair": Kind(
        dimba_kernels.ssd_pair,
        _BOTH_WAYS_SHAPES,
        lambda sizes, dtype, key: _ssd(sizes, dtype, key, (2,)),
        lambda sizes, backward: _ssd_work(sizes, backward, ways=2),
        _heads(1, 333, 2, 64, 128),
        instead_of=("ssd", 2),
    ),
    "selective_scan": Kind(
        dimba_kernels.selective_scan,
        {
            "8x2048x1536": _channels(8, 2048, 1536, n=16),
            "1x32768x3840": _channels(1, 32768, 3840, n=16),
            "64x128x1536": _channels(64, 128, 1536, n=16),
            "tiny": _channels(2, 37, 24, n=4),
        },
        _selective_scan,
        _selective_scan_work,
        _channels(1, 333, 96, n=16),
        statics={"dt_softplus": True},
    ),
    "causal_conv1d": Kind(
        dimba_kernels.causal_conv1d,
        {
            "8x2048x4096": _channels(8, 2048, 4096, k=4),
            "8x2048x3840": _channels(8, 2048, 3840, k=4),
            "512x64x1152": _channels(512, 64, 1152, k=4),
            "tiny": _channels(2, 37, 24, k=4),
        },
        _convolution,
        _convolution_work,
        _channels(2, 133, 264, k=4),
        statics={"activation": "silu"},
    ),
}


def call(kind: Kind, implementation: str | None) -> Callable[[Arrays], list[jax.Array]]:
    """The operation as a function of its arrays: all outputs, y first."""

    def run(arrays: Arrays) -> list[jax.Array]:
        return jax.tree.leaves(kind.function(**arrays, **kind.statics, implementation=implementation))

    return run


def forward(kind: Kind, implementation: str | None) -> Callable[[Arrays, jax.Array], Any]:
    """y alone, as training takes it."""
    run = call(kind, implementation)
    return lambda arrays, dy: run(arrays)[0]


def forward_backward(kind: Kind, implementation: str | None) -> Callable[[Arrays, jax.Array], Any]:
    """y, and the gradients of every array for a cotangent of y."""
    run = call(kind, implementation)

    def both(arrays: Arrays, dy: jax.Array) -> Any:
        y, pull = jax.vjp(lambda arrays: run(arrays)[0], arrays)
        return y, pull(dy)[0]

    return both


DIRECTIONS = {"fwd": forward, "fwd+bwd": forward_backward}


def least_bytes(arrays: Arrays, y: jax.ShapeDtypeStruct | jax.Array, backward: bool) -> int:
    """Inputs read once and y written once; backward, inputs and dy read, and gradients written."""
    size = sum(array.size * array.dtype.itemsize for array in arrays.values())
    output = y.size * y.dtype.itemsize
    return size + output + (2 * size + output if backward else 0)
