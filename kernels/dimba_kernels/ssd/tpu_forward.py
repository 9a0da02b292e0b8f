"""The forward TPU kernels of `ssd`: y and the last state, and the states that enter the chunks.

The decay from position j to i of a chunk is q_i k_j, with k_j = exp(m - s_j), q_i = exp(s_i - m), s the sums of log
decays and m their middle. While that is in range, no matrix of decays is made, and one S = C B^T serves all heads:

    y = q (S (k dt x) + C (r h)) + D x        h = r (r h + B^T (k dt x))        r = exp(m), m half of the chunk's sum

Elsewhere (`pairwise`) every head has a matrix of decays, exp(s_i - s_j) where j comes before i.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.ssd import tpu_blocks as blocks
from dimba_kernels.ssd import tpu_parts as parts
from dimba_kernels.ssd.tpu_layout import SUBLANES, Plan
from dimba_kernels.ssd.tpu_operands import OperandShape
from dimba_kernels.ssd.tpu_tiles import LANES

Arrays = dict[str, Any]


def forward(plan: Plan, arrays: Arrays, other: Arrays | None = None) -> tuple[jax.Array, jax.Array]:
    """y (launch rows, length, lanes) and the last state (launch rows, lanes, state).

    `other`: for the sum of both directions, `a` of the reverse scan and `states`, with which it enters each chunk.
    """
    other = other or {}
    inputs = _inputs(plan, arrays) | dict(
        C=blocks.by_group(plan, arrays["C"]),
        D=blocks.by_lane(plan, arrays["D"]),
        other_a=blocks.by_pass(plan, other["a"]) if other else None,
        other_states=blocks.chunk_states(plan, other["states"]) if other else None,
    )
    scratch = _scratch(plan) | dict(
        scores=((plan.chunk, plan.chunk), jnp.float32),
        acting=OperandShape(plan.chunk + plan.state, plan.chunk, plan.dtype),
        C_kept=OperandShape(plan.chunk, plan.state, plan.dtype),
    )
    if other:
        scratch |= _decay_scratch(plan, "other_") | dict(other_acting=OperandShape(plan.chunk, plan.chunk, plan.dtype))
    outputs = dict(y=blocks.made_sequence(plan), last=blocks.made_state(plan))
    made = blocks.launch(_forward, plan, inputs, outputs, scratch, name="ssd_both" if other else "ssd_forward")
    return made["y"], made["last"]


def entering_states(plan: Plan, arrays: Arrays) -> jax.Array:
    """The state with which the scan enters each chunk: (launch rows, chunks, state, lanes) in the dtype of x.

    In passes whose decays are factored it comes times r, as it is used.
    """
    shape = (plan.launch_rows, plan.chunks, plan.state, plan.lanes)
    states = blocks.chunk_states(plan, jax.ShapeDtypeStruct(shape, plan.dtype))
    made = blocks.launch(_entering, plan, _inputs(plan, arrays), dict(states=states), _scratch(plan), name="ssd_states")
    return made["states"]


def _inputs(plan: Plan, arrays: Arrays) -> dict[str, blocks.Block | None]:
    return dict(
        x=blocks.sequence(plan, arrays["x"]),
        dt=blocks.by_pass(plan, arrays["dt"], shared=True),
        a=blocks.by_pass(plan, arrays["a"]),
        fits=blocks.factored(plan, arrays["fits"]),
        B=blocks.by_group(plan, arrays["B"]),
        h0=blocks.state(plan, arrays["h0"]),
        valid=blocks.by_position(plan, arrays["valid"]),
    )


def _scratch(plan: Plan) -> blocks.Scratch:
    return _decay_scratch(plan) | dict(
        state=((plan.state, plan.block_lanes), jnp.float32),
        kept_state=((plan.state, plan.block_lanes), jnp.float32),
        B_turned=OperandShape(plan.state, plan.chunk, plan.dtype),
    )


def _decay_scratch(plan: Plan, prefix: str = "") -> blocks.Scratch:
    return {
        f"{prefix}factors": parts.factor_scratch(plan),
        f"{prefix}columns": ((plan.chunk, LANES), jnp.float32),
        f"{prefix}rows": ((2 * SUBLANES, plan.chunk), jnp.float32),
    }


def _start(refs: Any) -> None:
    @parts.at_first()
    def _() -> None:
        refs.state[...] = jnp.zeros_like(refs.state) if refs.h0 is None else refs.h0[0].T


def _entering(plan: Plan, refs: Any, made: Any) -> None:
    _start(refs)
    direction = parts.sign(plan)
    valid = parts.valid_column(plan, refs.valid)
    parts.write_factors(plan, direction, refs, refs.a, refs.factors)
    refs.B_turned[...] = parts.turned(parts.kept(valid, refs.B[0]))

    def factored() -> None:
        for i, tile, lanes in parts.all_tiles(plan):
            half = parts.last_row(direction, parts.factors(plan, refs.factors, i, tile)[0])
            added = parts.dot(refs.B_turned[...], _acting(plan, refs, valid, refs.factors, i, tile, lanes))
            for rows in parts.row_groups(plan.state):
                half_state = half * refs.state[rows, lanes]
                made.states[0, 0, rows, lanes] = half_state.astype(plan.dtype)
                refs.state[rows, lanes] = half * (half_state + added[rows])

    def pairwise(i: Any) -> None:
        parts.write_decays(plan, direction, refs.dt[0, i], refs.a[0, i], refs.columns, refs.rows)
        for tile, lanes in parts.over_tiles(plan, i):
            made.states[0, 0, :, lanes] = refs.kept_state[:, lanes].astype(plan.dtype)
            stepped = parts.load(refs.x, valid, slice(None), lanes) * parts.spread(
                plan, refs.columns[...], parts.STEP, tile
            )
            _advance(plan, refs, tile, lanes, stepped)

    parts.over_passes(plan, refs, refs.state, factored, pairwise)


def _advance(plan: Plan, refs: Any, tile: int, lanes: Any, stepped: jax.Array) -> None:
    """state = exp(total) state + B^T (x dt decay_after)."""
    columns = refs.columns[...]
    total = parts.spread(plan, columns[:SUBLANES], parts.TOTAL, tile)[:1]
    reaching = stepped * parts.spread(plan, columns, parts.AFTER, tile)
    added = parts.dot(refs.B_turned[...], reaching.astype(plan.dtype))
    refs.state[:, lanes] = total * refs.kept_state[:, lanes] + added


def _acting(plan: Plan, refs: Any, valid: Any, columns: Any, i: int, tile: int, lanes: Any) -> jax.Array:
    """k dt x, an operand."""
    scaled = [
        parts.load(refs.x, valid, rows, lanes) * parts.factors(plan, columns, i, tile, rows)[1]
        for rows in parts.row_groups(plan.chunk)
    ]
    return jnp.concatenate([value.astype(plan.dtype) for value in scaled], axis=0)


def _forward(plan: Plan, refs: Any, made: Any) -> None:
    _start(refs)
    valid = parts.valid_column(plan, refs.valid)
    direction = parts.sign(plan)
    parts.write_factors(plan, direction, refs, refs.a, refs.factors)
    B, C = parts.kept(valid, refs.B[0]), parts.kept(valid, refs.C[0])
    refs.B_turned[...], refs.C_kept[...] = parts.turned(B), C
    scores = parts.dot(C, B, transposed=True)
    apart = parts.distance(plan)
    refs.acting[: plan.chunk] = jnp.where(apart * direction >= 0, scores, 0).astype(plan.dtype)
    refs.acting[plan.chunk :] = refs.B_turned[...]
    refs.scores[...] = scores
    if refs.other_a is not None:
        parts.write_factors(plan, -1, refs, refs.other_a, refs.other_factors)
        refs.other_acting[...] = jnp.where(apart <= 0, scores, 0).astype(plan.dtype)

    def factored() -> None:
        for i, tile, lanes in parts.all_tiles(plan):
            half = parts.last_row(direction, parts.factors(plan, refs.factors, i, tile)[0])
            half_state = jnp.concatenate(
                [(half * refs.state[rows, lanes]).astype(plan.dtype) for rows in parts.row_groups(plan.state)], axis=0
            )
            products = parts.dot(refs.acting[...], _acting(plan, refs, valid, refs.factors, i, tile, lanes))
            entered = parts.dot(refs.C_kept[...], half_state)
            other = None
            if refs.other_a is not None:
                acting = _acting(plan, refs, valid, refs.other_factors, i, tile, lanes)
                other = parts.dot(refs.other_acting[...], acting)
                other += parts.dot(refs.C_kept[...], refs.other_states[0, 0, :, lanes])
            for rows in parts.row_groups(plan.chunk):
                acted = parts.factors(plan, refs.factors, i, tile, rows)[0]
                y = acted * (products[rows] + entered[rows])
                if other is not None:
                    y += parts.factors(plan, refs.other_factors, i, tile, rows)[0] * other[rows]
                if refs.D is not None:
                    y += refs.D[0, :, lanes] * parts.load(refs.x, valid, rows, lanes)
                made.y[0, rows, lanes] = y.astype(plan.dtype)
            for rows in parts.row_groups(plan.state):
                added = products[plan.chunk + rows.start : plan.chunk + rows.stop]
                refs.state[rows, lanes] = half * (half * refs.state[rows, lanes] + added)

    parts.over_passes(plan, refs, refs.state, factored, lambda i: _pairwise(plan, refs, made, valid, i))

    @parts.at_last(plan)
    def _() -> None:
        made.last[0] = refs.state[...].T


def _pairwise(plan: Plan, refs: Any, made: Any, valid: jax.Array | None, i: Any) -> None:
    direction, apart = parts.sign(plan), parts.distance(plan)
    parts.write_decays(plan, direction, refs.dt[0, i], refs.a[0, i], refs.columns, refs.rows)
    if refs.other_a is not None:
        parts.write_decays(plan, -1, refs.dt[0, i], refs.other_a[0, i], refs.other_columns, refs.other_rows)

    def mixing(head: int) -> jax.Array:
        """C_i B_j times the decay from j to i."""
        weights = jnp.where(apart * direction >= 0, _weights(refs.columns, refs.rows, head), 0)
        if refs.other_a is not None:  # the diagonal belongs to both
            weights += jnp.where(apart <= 0, _weights(refs.other_columns, refs.other_rows, head), 0)
        return (weights * refs.scores[...]).astype(plan.dtype)

    for tile, lanes in parts.over_tiles(plan, i):
        x = parts.load(refs.x, valid, slice(None), lanes)
        stepped = x * parts.spread(plan, refs.columns[...], parts.STEP, tile)
        heads = range(tile * plan.per_tile, (tile + 1) * plan.per_tile)
        within = parts.dot(jnp.concatenate([mixing(head) for head in heads], axis=0), stepped.astype(plan.dtype))
        y = parts.per_head(plan, [within[u * plan.chunk : (u + 1) * plan.chunk] for u in range(plan.per_tile)])
        entered = parts.dot(refs.C_kept[...], refs.kept_state[:, lanes].astype(plan.dtype))
        y += parts.spread(plan, refs.columns[...], parts.ENTER, tile) * entered
        if refs.other_a is not None:
            entered = parts.dot(refs.C_kept[...], refs.other_states[0, 0, :, lanes])
            y += parts.spread(plan, refs.other_columns[...], parts.ENTER, tile) * entered
        if refs.D is not None:
            y += refs.D[0, :, lanes] * x
        made.y[0, :, lanes] = y.astype(plan.dtype)
        _advance(plan, refs, tile, lanes, stepped)


def _weights(columns: Any, rows: Any, head: int) -> jax.Array:
    """The decay from position j (lanes) to i (sublanes) where j is not after i; elsewhere some number up to 1."""
    exponent = columns[:, parts.SUMS + head : parts.SUMS + head + 1] - rows[head : head + 1]
    count, others = columns[:, parts.COUNT + head : parts.COUNT + head + 1], SUBLANES + head
    return jnp.where(count == rows[others : others + 1], jnp.exp2(jnp.minimum(exponent, 0)), 0)
