"""What the TPU kernels of `ssd` have in common: the decays of a chunk, and matmuls.

Per position a kernel needs numbers per head, of which a TPU has two forms: rows, with positions in the lanes, and
columns, with positions in the sublanes and a quantity in each lane. Sums along a chunk are made of rows, by one matmul
with a triangle of ones (Mosaic has no cumulative sum); columns are transposed rows, so both hold the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from dimba_kernels.ssd.tpu_layout import FLOOR, SUBLANES, Plan
from dimba_kernels.ssd.tpu_tiles import LANES
from dimba_kernels.tpu_call import interpreting

LOG2E = 1.4426950408889634
# columns of one pass, eight lanes each; sums are in units of log 2
SUMS, STEP, AFTER, ENTER, TOTAL, COUNT = (SUBLANES * i for i in range(6))
_MOST = 126.0  # of powers of two that are finite and normal


def sign(plan: Plan) -> Any:
    """1 where this program's scan runs to the right, -1 where it runs to the left."""
    if len(plan.directions) == 1:
        return -1 if plan.directions[0] else 1
    return jnp.where(pl.program_id(0) < plan.rows, 1, -1)


def distance(plan: Plan) -> jax.Array:
    """(chunk, chunk) int32: row minus column."""
    shape = (plan.chunk, plan.chunk)
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0) - jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def dot(a: jax.Array, b: jax.Array, transposed: bool = False) -> jax.Array:
    """a @ b, or a @ b.T, in float32; of float32 operands to float32 accuracy."""
    wide = a.dtype == jnp.float32
    if interpreting() and not wide:  # XLA's CPU backend refuses some of these products; the float32 ones are equal
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = jax.lax.Precision.HIGHEST if wide or interpreting() else jax.lax.Precision.DEFAULT
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _thirds(value: jax.Array) -> list[jax.Array]:
    """Three arrays that bfloat16 holds exactly and whose sum is `value`: eight of its 24 bits each."""
    first, rest = _halves(value)
    return [first, *_halves(rest)]


def _halves(value: jax.Array) -> list[jax.Array]:
    """The first eight of 24 bits, and the others."""
    first = jax.lax.bitcast_convert_type(value, jnp.int32) & jnp.int32(-65536)  # XLA may drop a cast and its inverse
    first = jax.lax.bitcast_convert_type(first, jnp.float32)
    return [first, value - first]


def sums_along(values: jax.Array, triangle: jax.Array) -> jax.Array:
    """values (r, chunk) @ triangle of zeros and ones, exact but for the rounding of float32 sums.

    A float32 matmul is six of bfloat16; here three do, since the triangle needs no more than one part.
    """
    rows = values.shape[0]
    parts = jnp.concatenate(_thirds(values), axis=0).astype(jnp.bfloat16)
    sums = dot(parts, triangle)
    return (sums[2 * rows :] + sums[rows : 2 * rows]) + sums[:rows]


def triangles(*masks: jax.Array) -> jax.Array:
    return jnp.concatenate([mask.astype(jnp.float32) for mask in masks], axis=1).astype(jnp.bfloat16)


def write_factors(plan: Plan, direction: Any, refs: Any, a: Any, columns: Any, inverse: bool = False) -> None:
    """Fill `columns` (groups, chunk, 128) for all passes of a block.

    With s the sum of log decays up to a position in the direction of the scan, and m half that of the chunk:
    exp(s - m), with which a position is acted upon; dt exp(m - s), with which it acts on those behind it; with
    `inverse` also exp(m - s) and dt. Zeros in passes whose decays cannot be factored: they add nothing anywhere.
    """
    passes = plan.passes
    a = jnp.concatenate([eight_rows(a[0, i]) for i in range(passes)], axis=0) * LOG2E
    dt = jnp.concatenate([eight_rows(refs.dt[0, i]) for i in range(passes)], axis=0)
    sums = sums_along(a, triangles(direction * distance(plan) <= 0))
    log = jnp.clip(sums - jnp.sum(a, axis=1, keepdims=True) / 2, -_MOST, _MOST)
    inverse_decay = jnp.exp2(-log)
    quantities = [jnp.exp2(log), dt * inverse_decay, *([inverse_decay, dt] if inverse else [])]
    per_group = LANES // (SUBLANES * len(quantities))
    for group in range(columns.shape[0]):
        members = range(group * per_group, min((group + 1) * per_group, passes))
        rows = [
            jnp.where(refs.fits[0, 0, i, refs.chunk] == 1, value[i * SUBLANES : (i + 1) * SUBLANES], 0)
            for i in members
            for value in quantities
        ]
        columns[group, :, : len(rows) * SUBLANES] = jnp.concatenate(rows, axis=0).T


def factor_scratch(plan: Plan, quantities: int) -> tuple[tuple[int, ...], Any]:
    """For `columns` of `write_factors`, of two quantities or four."""
    per_group = LANES // (SUBLANES * quantities)
    return (-(-plan.passes // per_group), plan.chunk, LANES), jnp.float32


def factors(
    plan: Plan, columns: Any, i: int, span: int, wanted: tuple[int, ...] = (0, 1), quantities: int = 2
) -> list[jax.Array]:
    """Of the quantities of pass i those wanted, each head's over its lanes: (chunk, lanes of a span) each."""
    per_group = LANES // (SUBLANES * quantities)
    group = columns[i // per_group]
    first = i % per_group * quantities * SUBLANES + span * plan.span * plan.per_tile
    return [_gathered(plan, group, first + quantity * SUBLANES, plan.span) for quantity in wanted]


def write_decays(plan: Plan, direction: Any, dt: jax.Array, a: jax.Array, columns: Any, rows: Any) -> None:
    """dt and a (heads, chunk) of one pass fill `columns` (chunk, 128) and `rows` (16, chunk): sums, counts of resets.

    SUMS: of the log decays up to a position in the direction of the scan. STEP: dt. AFTER: the decay from a position to
    the end of the chunk, summed on its own, since a difference would lose digits. ENTER: the decay from the start.
    TOTAL: of the chunk. COUNT: of resets up to a position; decay between positions of unequal count is none.
    """
    q, dt, a = plan.chunk, eight_rows(dt), eight_rows(a)
    ahead = -direction * distance(plan)  # how far the column lies ahead of the row
    triangle = triangles(ahead >= 0, ahead < 0)
    reset = a <= FLOOR
    counts = dot(reset.astype(jnp.float32).astype(jnp.bfloat16), triangle)
    sums = sums_along(jnp.where(reset, 0, a) * LOG2E, triangle)
    sums, after, count, count_after = sums[:, :q], sums[:, q:], counts[:, :q], counts[:, q:]
    after_decay, enter, total = (
        jnp.where(resets == 0, jnp.exp2(value), 0)
        for value, resets in ((after, count_after), (sums, count), (sums + after, count + count_after))
    )
    quantities = jnp.concatenate([sums, dt, after_decay, enter, total, count], axis=0)
    columns[:, : quantities.shape[0]] = quantities.T
    rows[:SUBLANES], rows[SUBLANES:] = sums, count


def eight_rows(value: jax.Array) -> jax.Array:
    """(heads, chunk) with zeros below."""
    missing = SUBLANES - value.shape[0]
    if not missing:
        return value
    return jnp.concatenate([value, jnp.zeros((missing, value.shape[1]), value.dtype)], axis=0)


def spread(plan: Plan, columns: jax.Array, quantity: int, tile: int) -> jax.Array:
    """A quantity of `write_decays`, that of each head of a tile over its lanes: (rows of columns, width)."""
    return _gathered(plan, columns, quantity + tile * plan.per_tile)


def _gathered(plan: Plan, columns: jax.Array, first: int, tiles_joined: int = 1) -> jax.Array:
    tiles = []
    for start in range(0, tiles_joined * plan.width, LANES):
        lane = start + jax.lax.broadcasted_iota(jnp.int32, columns.shape, 1)
        index = first + lane // plan.head_dim
        tiles.append(jnp.take_along_axis(columns, index, axis=1, mode="promise_in_bounds"))
    return jnp.concatenate(tiles, axis=1) if len(tiles) > 1 else tiles[0]


def per_head(plan: Plan, values: list[jax.Array]) -> jax.Array:
    """From one array (r, width) for each head of a tile, the lanes of that head."""
    result = values[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, result.shape, 1)
    for i, value in enumerate(values[1:], 1):
        result = jnp.where(lane >= i * plan.head_dim, value, result)
    return result


def valid_column(plan: Plan, valid: Any) -> jax.Array | None:
    """(chunk, 1) bool."""
    if valid is None:
        return None
    return jnp.broadcast_to(valid[0], (SUBLANES, plan.chunk)).T[:, :1] > 0


def kept(valid: jax.Array | None, value: jax.Array) -> jax.Array:
    """Zeros at positions that do not count, whatever stands there."""
    return value if valid is None else jnp.where(valid, value, jnp.zeros_like(value))


def turned(value: jax.Array) -> jax.Array:
    """The transpose, of any dtype; Mosaic turns 32-bit matrices."""
    return value.astype(jnp.float32).T.astype(value.dtype)


def lanes_of(plan: Plan, i: Any, tile: int) -> Any:
    """The lanes of a tile of pass i, in a block."""
    return pl.ds(pl.multiple_of(i * plan.pass_lanes + tile * plan.width, LANES), plan.width)


def at_first() -> Callable[[Callable[[], None]], None]:
    return pl.when(pl.program_id(2) == 0)


def at_last(plan: Plan) -> Callable[[Callable[[], None]], None]:
    return pl.when(pl.program_id(2) == plan.chunks - 1)


def over_passes(plan: Plan, refs: Any, factored: Callable[[int], None], pairwise: Callable[[Any], None]) -> None:
    """`factored` for every pass of the block, then `pairwise` for those whose decays in this chunk do not fit it.

    The former are unrolled: with the places known, the compiler lets the passes overlap.
    """
    for i in range(plan.passes):
        factored(i)

    def one_pass(i: Any, carry: Any) -> Any:
        pl.when(refs.fits[0, 0, i, refs.chunk] == 0)(lambda: pairwise(i))
        return carry

    @pl.when(refs.fits[0, 0, plan.passes, refs.chunk] == 0)
    def _() -> None:
        jax.lax.fori_loop(0, plan.passes, one_pass, 0)


def over_tiles(plan: Plan, i: Any, joined: int = 1) -> Iterator[tuple[int, Any]]:
    """Each tile of pass i, or each `joined` of them, and its lanes in the block."""
    for tile in range(plan.unroll // plan.per_tile // joined):
        start: Any = i * plan.pass_lanes + tile * joined * plan.width
        yield tile, pl.ds(start if isinstance(i, int) else pl.multiple_of(start, LANES), joined * plan.width)


def last_row(direction: Any, value: jax.Array) -> jax.Array:
    """(chunk, width) -> (1, width): the last position in the direction of the scan."""
    if isinstance(direction, int):
        return value[-1:] if direction > 0 else value[:1]
    return jnp.where(direction > 0, value[-1:], value[:1])


def add_at_last(direction: Any, value: jax.Array, row: jax.Array) -> jax.Array:
    """Add a row (1, width) at the last position in the direction of the scan."""
    first, middle, last = value[:SUBLANES], value[SUBLANES:-SUBLANES], value[-SUBLANES:]
    sublane = jax.lax.broadcasted_iota(jnp.int32, first.shape, 0)
    first += jnp.where((sublane == 0) & (direction < 0), row, 0)
    last += jnp.where((sublane == SUBLANES - 1) & (direction > 0), row, 0)
    return jnp.concatenate([first, middle, last], axis=0)


def head_sums(plan: Plan, value: jax.Array, span: int) -> jax.Array:
    """Sums over the lanes of each head of a span, (chunk, lanes) -> (8, chunk), each in the row of its head.

    A matmul of a few rows, since sums over lanes are slow: in two parts, good for 16 bits, beside bfloat16 inputs.
    """
    shape = (SUBLANES, value.shape[1])
    head = jax.lax.broadcasted_iota(jnp.int32, shape, 0) - span * plan.span * plan.per_tile
    own = (jax.lax.broadcasted_iota(jnp.int32, shape, 1) // plan.head_dim == head).astype(jnp.float32)
    terms = _thirds(value) if plan.dtype == "float32" else _halves(value)
    own = jnp.concatenate([own] * len(terms), axis=1).astype(jnp.bfloat16)
    return dot(own, jnp.concatenate([term.astype(jnp.bfloat16) for term in terms], axis=1), transposed=True)
