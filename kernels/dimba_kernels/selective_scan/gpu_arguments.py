"""What the GPU kernels of `selective_scan` are given: the arguments' forms, and the constants."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels import triton_call
from dimba_kernels.dispatch import resets
from dimba_kernels.selective_scan.gpu_tiles import Layout


class Arrays(NamedTuple):
    """The arguments; flags (b, l) int32 has bit 0 where the mask is True, bit 1 where the state starts from zero."""

    u: jax.Array
    dt: jax.Array
    A: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array | None
    z: jax.Array | None
    h0: jax.Array | None
    dt_bias: jax.Array | None
    flags: jax.Array | None


class Statics(NamedTuple):
    dt_softplus: bool
    reverse: bool


def flags_of(mask: jax.Array | None, segments: jax.Array | None, reverse: bool) -> jax.Array | None:
    if mask is None and segments is None:
        return None
    flags = jnp.int32(1) if mask is None else mask.astype(jnp.int32)
    if segments is not None:
        flags = flags + 2 * resets(segments, reverse).astype(jnp.int32)
    return flags


def constants_of(arrays: Arrays, statics: Statics, layout: Layout, segment: int) -> dict[str, int]:
    """What all kernels but `selective_scan_borders` take."""
    _, l, d = arrays.u.shape
    n = arrays.A.shape[1]
    return layout.of(n) | dict(
        EXACT=jnp.float32 in (arrays.u.dtype, arrays.dt.dtype),
        L=l,
        D=d,
        N=n,
        SEGMENT=segment,
        HAS_Z=arrays.z is not None,
        HAS_BIAS=arrays.dt_bias is not None,
        FLAGS=arrays.flags is not None,
        SOFTPLUS=statics.dt_softplus,
        REVERSE=statics.reverse,
        V=layout.side_by_side(n),
        EVEN=l % segment == 0 and d % layout.block(n) == 0,
        FAST=not triton_call.interpreting(),
    )


def packed(arrays: Arrays, statics: Statics, layout: Layout, segment: int) -> jax.Array:
    """B and C as the kernels want them (see gpu_forward.py): (b, steps of whole segments, 2, states)."""
    l, n = arrays.B.shape[1:]
    both = jnp.stack([arrays.B, arrays.C], 2).astype(jnp.float32)
    if arrays.flags is not None:
        both = jnp.where((arrays.flags % 2 != 0)[:, :, None, None], both, 0)
    if statics.reverse:
        both = both[:, ::-1]
    return jnp.pad(both, [(0, 0), (0, -l % segment), (0, 0), (0, layout.padded(n) - n)])


def unpacked(dBC: jax.Array, statics: Statics, l: int, n: int) -> tuple[jax.Array, jax.Array]:
    """B's and C's gradients (b, l, n), of an array that lies as `packed` does."""
    both = dBC[:, :l, :, :n]
    if statics.reverse:
        both = both[:, ::-1]
    return both[:, :, 0], both[:, :, 1]
