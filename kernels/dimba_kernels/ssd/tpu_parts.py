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

from dimba_kernels import tpu_call
from dimba_kernels.ssd.tpu_layout import FLOOR, SUBLANES, Plan
from dimba_kernels.ssd.tpu_tiles import LANES

LOG2E = 1.4426950408889634
# columns of one pass, eight lanes each; sums are in units of log 2
SUMS, STEP, AFTER, ENTER, TOTAL, COUNT = (SUBLANES * i for i in range(6))
_PER_GROUP = LANES // (2 * SUBLANES)  # passes whose factors fit the lanes of one array
ROWS = 2 * SUBLANES  # of one register of bfloat16
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
    if (
        tpu_call.interpreting() and not wide
    ):  # XLA's CPU backend refuses some of these products; the float32 ones are equal
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = jax.lax.Precision.HIGHEST if wide or tpu_call.interpreting() else jax.lax.Precision.DEFAULT
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


def write_factors(plan: Plan, direction: Any, refs: Any, a: Any, columns: Any, logs: bool = False) -> None:
    """Fill `columns` (groups, chunk, 128) for all passes of a block, two quantities of each.

    With s the sum of log decays up to a position in the direction of the scan, and m half that of the chunk:
    exp(s - m), with which a position is acted upon, and dt exp(m - s), with which it acts on those behind it. Or, with
    `logs`, (s - m) / log 2 and dt. In passes whose decays cannot be factored they are, or make, numbers that add
    nothing anywhere.
    """
    passes = plan.passes
    a = jnp.concatenate([eight_rows(a[0, i]) for i in range(passes)], axis=0) * LOG2E
    dt = jnp.concatenate([eight_rows(refs.dt[0, i]) for i in range(passes)], axis=0)
    sums = sums_along(a, triangles(direction * distance(plan) <= 0))
    log = jnp.clip(sums - jnp.sum(a, axis=1, keepdims=True) / 2, -_MOST, _MOST)
    # 2^-126 underflows beside anything, its inverse is finite, and dt is 0
    quantities = [(log, -_MOST), (dt, 0.0)] if logs else [(jnp.exp2(log), 0.0), (dt * jnp.exp2(-log), 0.0)]
    for group in range(columns.shape[0]):
        members = range(group * _PER_GROUP, min((group + 1) * _PER_GROUP, passes))
        rows = [
            jnp.where(refs.fits[0, 0, i, refs.chunk] == 1, value[i * SUBLANES : (i + 1) * SUBLANES], otherwise)
            for i in members
            for value, otherwise in quantities
        ]
        columns[group, :, : len(rows) * SUBLANES] = jnp.concatenate(rows, axis=0).T


def factor_scratch(plan: Plan) -> tuple[tuple[int, ...], Any]:
    """For `columns` of `write_factors`."""
    return (-(-plan.passes // _PER_GROUP), plan.chunk, LANES), jnp.float32


def factors(plan: Plan, columns: Any, i: int, tile: int, rows: Any = slice(None)) -> list[jax.Array]:
    """The two quantities of pass i at some positions, that of each head of a tile over its lanes: (rows, width)."""
    group = columns[i // _PER_GROUP, rows]
    first = i % _PER_GROUP * 2 * SUBLANES + tile * plan.per_tile
    return [_gathered(plan, group, first + quantity * SUBLANES) for quantity in range(2)]


def row_groups(count: int) -> list[slice]:
    """A matrix by the rows of one bfloat16 register: what many steps do to it, they do to one group after the other."""
    return [slice(first, first + ROWS) for first in range(0, count, ROWS)]


def load(values: Any, valid: jax.Array | None, rows: slice, lanes: Any) -> jax.Array:
    """Rows of a block of x or dy, in float32."""
    return kept(None if valid is None else valid[rows], values[0, rows, lanes].astype(jnp.float32))


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


def _gathered(plan: Plan, columns: jax.Array, first: int) -> jax.Array:
    tiles = []
    for start in range(0, plan.width, LANES):
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


def at_first() -> Callable[[Callable[[], None]], None]:
    return pl.when(pl.program_id(2) == 0)


def at_last(plan: Plan) -> Callable[[Callable[[], None]], None]:
    return pl.when(pl.program_id(2) == plan.chunks - 1)


def over_passes(
    plan: Plan, refs: Any, state: Any, factored: Callable[[], None], pairwise: Callable[[Any], None]
) -> None:
    """`factored` for every pass of the block, then `pairwise` for those whose decays in this chunk do not fit it.

    The former are unrolled: with the places known, the compiler lets the passes overlap. They overwrite `state`; the
    latter find it as it was in `refs.kept_state`.
    """

    @pl.when(refs.fits[0, 0, plan.passes, refs.chunk] == 0)
    def _() -> None:
        refs.kept_state[...] = state[...]

    factored()

    def one_pass(i: Any, carry: Any) -> Any:
        pl.when(refs.fits[0, 0, i, refs.chunk] == 0)(lambda: pairwise(i))
        return carry

    @pl.when(refs.fits[0, 0, plan.passes, refs.chunk] == 0)
    def _() -> None:
        jax.lax.fori_loop(0, plan.passes, one_pass, 0)


def over_tiles(plan: Plan, i: Any) -> Iterator[tuple[int, Any]]:
    """Each tile of pass i, and its lanes in the block: a slice where i is a number, known to Mosaic."""
    for tile in range(plan.unroll // plan.per_tile):
        start = i * plan.pass_lanes + tile * plan.width
        if isinstance(i, int):
            yield tile, slice(start, start + plan.width)
        else:
            yield tile, pl.ds(pl.multiple_of(start, LANES), plan.width)  # pyright: ignore[reportArgumentType]


def all_tiles(plan: Plan) -> list[tuple[int, int, Any]]:
    """Pass, tile of it, and lanes, for the block."""
    return [(i, tile, lanes) for i in range(plan.passes) for tile, lanes in over_tiles(plan, i)]


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


def in_parts(plan: Plan, value: jax.Array, exact: bool) -> list[jax.Array]:
    """bfloat16 arrays whose sum is `value`, for `head_sums`: to 24 bits beside float32 inputs, and beside bfloat16 ones
    to 16 bits if `exact`, else to 8."""
    terms = _thirds(value) if plan.dtype == "float32" else _halves(value) if exact else [value]
    return [term.astype(jnp.bfloat16) for term in terms]


def head_sums(plan: Plan, terms: list[jax.Array], tile: int) -> jax.Array:
    """Sums over the lanes of each head of a tile, and of the parts: (rows, width) -> (8, rows), each in the row of its
    head in the pass.

    A matmul of a few rows, since sums over lanes are slow.
    """
    shape = (SUBLANES, plan.width)
    head = jax.lax.broadcasted_iota(jnp.int32, shape, 0) - tile * plan.per_tile
    own = (jax.lax.broadcasted_iota(jnp.int32, shape, 1) // plan.head_dim == head).astype(jnp.float32)
    own = jnp.concatenate([own] * len(terms), axis=1).astype(jnp.bfloat16)
    return dot(own, jnp.concatenate(terms, axis=1), transposed=True)
