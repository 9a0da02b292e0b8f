"""The layout in which the TPU kernels read time: one position of 8 x 128 channels is one vector register.

A TPU keeps a float32 array (b, l, d) in tiles of 8 positions by 128 channels, the tiles of one 8 positions side by
side. Named as (b, l/8, d/128 * 8, 128), with a tile's 8 positions inside the groups of 128 channels, the same bytes
are in the same order: XLA compiles the change of name to nothing. There, position 8i + s of 8 neighbouring groups
is every eighth row from s on, which a kernel loads as one full register:

    ref[i, pl.ds(s, 8, stride=8), :]

Arrays of 16 bits interleave two positions in a word. A kernel takes those as they are and widens each block into a
float32 scratch of this layout.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

ROWS, LANES = 8, 128


def device_kind() -> str:
    """Of the default device, or of a v5e where that is no TPU."""
    return jax.devices()[0].device_kind if jax.default_backend() == "tpu" else "TPU v5 lite"


def up(size: int, multiple: int) -> int:
    """The next multiple at or above."""
    return -(-size // multiple) * multiple


def even_block(l: int, most: int) -> int:
    """Positions of a block, a multiple of 16: the largest up to `most` that cuts l evenly, if it is not too small."""
    fits = [block for block in range(16, most + 1, 16) if l % block == 0]
    return fits[-1] if fits and fits[-1] >= min(l, most // 2) else min(up(l, 16), most)


def unrolled(trips: int) -> int:
    """How many passes of a short loop to write out, so that one begins while another ends."""
    return math.gcd(trips, 4)


def padded(value: jax.Array, axis: int, size: int) -> jax.Array:
    """Zeros behind `axis` up to `size`; nothing at all where it has that size."""
    if value.shape[axis] == size:
        return value
    return jnp.pad(value, [(0, size - n if i == axis else 0) for i, n in enumerate(value.shape)])


def to_rows(value: jax.Array) -> jax.Array:
    """float32 (b, l, d) -> (b, l/8, d/128 * 8, 128), l and d multiples of 8 and 128; others pass as they are."""
    if value.dtype != jnp.float32:
        return value
    b, l, d = value.shape
    cut = value.reshape(b, l // ROWS, ROWS, d // LANES, LANES)
    return cut.transpose(0, 1, 3, 2, 4).reshape(b, l // ROWS, d // LANES * ROWS, LANES)


def from_rows(value: jax.Array) -> jax.Array:
    """The inverse of `to_rows`; three axes pass as they are."""
    if value.ndim == 3:
        return value
    b, count, rows, _ = value.shape
    cut = value.reshape(b, count, rows // ROWS, ROWS, LANES)
    return cut.transpose(0, 1, 3, 2, 4).reshape(b, count * ROWS, rows // ROWS * LANES)


def channels(value: jax.Array, tiles: int, groups: int) -> jax.Array:
    """(..., d) -> float32 (..., tiles, groups, 128): channels as registers, zeros behind the last."""
    value = padded(value.astype(jnp.float32), value.ndim - 1, tiles * groups * LANES)
    return value.reshape(*value.shape[:-1], tiles, groups, LANES)


def channel_tiles(d: int) -> tuple[int, int]:
    """d (a multiple of 128) -> tiles, and groups of 128 channels in each: up to 8, as even as can be."""
    groups = d // LANES
    tiles = -(-groups // ROWS)
    return tiles, -(-groups // tiles)


def rows_spec(dtype: Any, block: int, groups: int, index: Any) -> pl.BlockSpec:
    """A block of `block` positions by `groups` groups of channels of an array that went through `to_rows`.

    index: (grid indices) -> (batch, block of positions, tile of channels).
    """
    if dtype != jnp.float32:
        return pl.BlockSpec((None, block, groups * LANES), index)
    return pl.BlockSpec((None, block // ROWS, groups * ROWS, LANES), lambda *at: (*index(*at), 0))


def rows_scratch(block: int, groups: int) -> Any:
    """float32 memory for a block in rows."""
    return pltpu.VMEM((block // ROWS, groups * ROWS, LANES), jnp.float32)


def widen(narrow: Any, rows: Any) -> None:
    """Copy a block (block, groups * 128) of 16 bits into `rows_scratch`."""
    count, height, _ = rows.shape

    def copy(i: jax.Array, _: None) -> None:
        wide = narrow[pl.ds(pl.multiple_of(i * 2 * ROWS, 2 * ROWS), 2 * ROWS), :].astype(jnp.float32)
        for half in range(2):
            for group in range(height // ROWS):
                part = wide[half * ROWS : (half + 1) * ROWS, group * LANES : (group + 1) * LANES]
                rows[2 * i + half, group * ROWS : (group + 1) * ROWS, :] = part

    jax.lax.fori_loop(0, count // 2, copy, None, unroll=unrolled(count // 2))


def narrow(rows: Any, into: Any) -> None:
    """The inverse of `widen`."""
    count, height, _ = rows.shape

    def copy(i: jax.Array, _: None) -> None:
        for group in range(height // ROWS):
            part = [rows[2 * i + half, group * ROWS : (group + 1) * ROWS, :] for half in range(2)]
            lanes = pl.ds(group * LANES, LANES)
            at = pl.ds(pl.multiple_of(i * 2 * ROWS, 2 * ROWS), 2 * ROWS)
            into[at, lanes] = jnp.concatenate(part, axis=0).astype(into.dtype)

    jax.lax.fori_loop(0, count // 2, copy, None, unroll=unrolled(count // 2))
