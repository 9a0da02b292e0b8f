"""The bare recurrence on TPU, forward only: what a position costs in the layout that the scans share."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dimba_kernels.tpu_call import tpu_call
from dimba_kernels.tpu_layout import LANES, channel_tiles, even_block, from_rows, rows_spec, to_rows, unrolled
from dimba_kernels.tpu_walk import Walk


def linear_scan(a: jax.Array, x: jax.Array) -> jax.Array:
    """h_i = a_i h_{i-1} + x_i along axis 1, h before the first zero.

    Args:
        a, x: (b, l, d) float32, l a multiple of 16 with a divisor for its block, d of 1,024.

    Raises:
        ValueError: another type or shape.
    """
    b, l, d = x.shape
    block = even_block(l, 256)
    if not (a.dtype == x.dtype == jnp.float32 and a.shape == x.shape and l % block == 0 and d % (8 * LANES) == 0):
        raise ValueError(f"linear_scan: {a.dtype} {a.shape} and {x.dtype} {x.shape}, expected float32 in whole blocks")
    tiles, groups = channel_tiles(d)
    spec = rows_spec(x.dtype, block, groups, lambda b, tile, i: (b, i, tile))
    rows = to_rows(x)
    h = tpu_call(
        partial(_kernel, block=block, groups=groups),
        grid=(b, tiles, l // block),
        in_specs=[spec, spec],
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(rows.shape, rows.dtype),
        scratch_shapes=[pltpu.VMEM((groups, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name="linear_scan",
    )(to_rows(a), rows)
    return from_rows(h)


def _kernel(a: Any, x: Any, h: Any, state: Any, *, block: int, groups: int) -> None:
    walk = Walk(SimpleNamespace(a=a, x=x, h=h), block, groups, reverse=False)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        state[...] = jnp.zeros_like(state)

    def step(i: jax.Array, before: jax.Array) -> jax.Array:
        for s in walk.order[::2]:
            # two positions at a time: the chain that everything waits for is one product and one sum for both
            first, second = walk.load("a", i, s), walk.load("a", i, s + 1)
            added = walk.load("x", i, s)
            walk.store("h", i, s, first * before + added)
            before = second * first * before + (second * added + walk.load("x", i, s + 1))
            walk.store("h", i, s + 1, before)
        return before

    state[...] = jax.lax.fori_loop(0, walk.count, step, state[...], unroll=unrolled(walk.count))
