"""The backward pass of `ssd` on TPUs where the decays of a chunk are products of two factors; see `tpu_backward`.

A tile of 128 lanes goes through four stages, and each waits for the one before it. The compiler fills a wait with what
stands near by, so the stages of four tiles stand side by side: it keeps the matrix units nine tenths busy, where one
tile after the other left them half idle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.ssd import tpu_parts as parts
from dimba_kernels.ssd.tpu_layout import SUBLANES, Plan


class _Tile(NamedTuple):
    i: int  # the pass of the block
    tile: int  # of the pass
    lanes: slice  # of the block


class _Factors(NamedTuple):
    """By groups of rows: k, and dt."""

    inverse: list[jax.Array]
    step: list[jax.Array]


class _Products(NamedTuple):
    """S^T d^ and C^T d^, one under the other; B (r dh); S x^ + C (r h); parts of <r h, r dh>, by lane."""

    backwards: jax.Array
    from_state: jax.Array
    forwards: jax.Array
    whole: jax.Array


def factored(plan: Plan, refs: Any, made: Any, valid: jax.Array | None) -> None:
    """All passes of the block."""
    tiles = [_Tile(*place) for place in parts.all_tiles(plan)]
    for i in range(plan.passes):
        refs.upto[i] = refs.before[i] = jnp.zeros((SUBLANES, plan.chunk), jnp.float32)
        made.dt[0, i] = jnp.zeros((plan.unroll, plan.chunk), jnp.float32)
    scales: dict[int, _Factors] = {}
    products: dict[int, _Products] = {}
    terms: dict[int, tuple[list[jax.Array], list[jax.Array]]] = {}
    for t in range(len(tiles) + 3):
        if t < len(tiles):
            scales[t] = _write_operands(plan, refs, valid, tiles[t])
        if 0 <= t - 1 < len(tiles):
            products[t - 1] = _multiplied(plan, refs, tiles[t - 1])
        if 0 <= t - 2 < len(tiles):
            terms[t - 2] = _gradients(plan, refs, made, valid, tiles[t - 2], scales.pop(t - 2), products.pop(t - 2))
        if 0 <= t - 3:
            _add_sums(plan, refs, made, tiles[t - 3], *terms.pop(t - 3))


def _write_operands(plan: Plan, refs: Any, valid: jax.Array | None, at: _Tile) -> _Factors:
    """x^ and d^."""
    made = _Factors([], [])
    for rows in parts.row_groups(plan.chunk):
        log, step = parts.factors(plan, refs.factors, at.i, at.tile, rows)
        inverse = jnp.exp2(-log)
        refs.acting[rows, at.lanes] = parts.load(refs.x, valid, rows, at.lanes) * (step * inverse)
        refs.dacted[rows, at.lanes] = parts.load(refs.dy, valid, rows, at.lanes) * jnp.exp2(log)
        made.inverse.append(inverse)
        made.step.append(step)
    return made


def _multiplied(plan: Plan, refs: Any, at: _Tile) -> _Products:
    """The matmuls of a head's lanes; and the gradient of the state, on to the next chunk."""
    lanes, state = at.lanes, refs.states[0, 0, :, at.lanes]
    backwards = parts.dot(refs.back[...], refs.dacted[: plan.chunk, lanes])
    half = _half_decay(plan, refs.factors, at, parts.sign(plan))
    whole = jnp.zeros((parts.ROWS, plan.width), jnp.float32)
    for rows in parts.row_groups(plan.state):
        half_dstate = half * refs.dstate[rows, lanes]
        whole += half_dstate * state[rows].astype(jnp.float32)
        below = slice(plan.chunk + rows.start, plan.chunk + rows.stop)
        refs.dacted[below, lanes] = half_dstate
        refs.dstate[rows, lanes] = half * (half_dstate + backwards[below])
    forwards = parts.dot(refs.ahead[...], refs.acting[:, lanes]) + parts.dot(refs.C_kept[...], state)
    return _Products(backwards, parts.dot(refs.B_kept[...], refs.dacted[plan.chunk :, lanes]), forwards, whole)


def _half_decay(plan: Plan, columns: Any, at: _Tile, direction: Any) -> jax.Array:
    """r, (1, lanes)."""
    ends = (slice(0, SUBLANES), slice(plan.chunk - SUBLANES, None))
    logs = [parts.factors(plan, columns, at.i, at.tile, rows)[0] for rows in ends]
    return jnp.exp2(parts.last_row(direction, jnp.concatenate(logs, axis=0)))


def _gradients(
    plan: Plan, refs: Any, made: Any, valid: jax.Array | None, at: _Tile, scales: _Factors, products: _Products
) -> tuple[list[jax.Array], list[jax.Array]]:
    """dx and dD; and for the sums over heads, what counts in da up to a position, and x z, both in parts."""
    lanes, whole = at.lanes, products.whole
    changes, steps = [], []
    skip = jnp.zeros_like(whole)
    for k, rows in enumerate(parts.row_groups(plan.chunk)):
        acting, dacted = (ref[rows, lanes].astype(jnp.float32) for ref in (refs.acting, refs.dacted))
        from_state = products.from_state[rows]
        dacting = products.backwards[rows] + from_state
        whole += acting * from_state
        changes.append(parts.in_parts(plan, dacted * products.forwards[rows] - acting * dacting, exact=True))
        x, dy = parts.load(refs.x, valid, rows, lanes), parts.load(refs.dy, valid, rows, lanes)
        z = scales.inverse[k] * dacting
        dx = scales.step[k] * z
        if refs.D is not None:
            dx += refs.D[0, :, lanes] * dy
            skip += dy * x
        made.x[0, rows, lanes] = dx.astype(plan.dtype)
        steps.append(parts.in_parts(plan, x * z, exact=False))
    if refs.D is not None:
        made.D[0, :, lanes] += skip[:SUBLANES] + skip[SUBLANES:]
    refs.whole[:, lanes] = whole[:SUBLANES] + whole[SUBLANES:]
    return _joined(changes), _joined(steps)


def _joined(groups: list[list[jax.Array]]) -> list[jax.Array]:
    """Each part in one array."""
    return [jnp.concatenate(rows, axis=0) for rows in zip(*groups, strict=True)]


def _add_sums(plan: Plan, refs: Any, made: Any, at: _Tile, changes: list[jax.Array], steps: list[jax.Array]) -> None:
    """Over the lanes of a head, and over heads."""
    refs.upto[at.i] += parts.head_sums(plan, changes, at.tile)
    made.dt[0, at.i] += parts.head_sums(plan, steps, at.tile)[: plan.unroll]
    dacted = refs.dacted[:, at.lanes]
    refs.dscores[...] += parts.dot(dacted, refs.acting[:, at.lanes], transposed=True)
    refs.dC_sum[...] += parts.dot(dacted[: plan.chunk], refs.states[0, 0, :, at.lanes], transposed=True)
