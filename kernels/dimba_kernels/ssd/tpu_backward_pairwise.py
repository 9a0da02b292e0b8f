"""The backward pass of `ssd` on TPUs with a matrix of decays for each head: any decays, and resets.

In the notation of `tpu_backward`, with L_ij the decay from j to i, e_i that from the start of the chunk, f_j that to
its end and E that of the chunk:

    z_j  = sum_i S_ij L_ij dy_i + f_j B_j dh            dS = sum over heads of L_ij dt_j (x_j dy_i)
    da_k = sum_{i>=k} (r_i + v_i - c_i) + sum_{j<k} w_j + T

with r and c the sums over j and over i of K_ij = S'_ij dS_ij of the head, v_i = e_i dy_i C_i h,
w_j = f_j dt_j x_j B_j dh and T = E <h, dh>.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.ssd import tpu_parts as parts
from dimba_kernels.ssd.tpu_layout import SUBLANES, Plan
from dimba_kernels.ssd.tpu_tiles import LANES

# lanes of the column sums of one pass, turned into rows at its end
_DDT, _BEFORE, _UPTO, _MINUS = (SUBLANES * i for i in range(4))


def pairwise(plan: Plan, refs: Any, made: Any, valid: jax.Array | None, i: Any) -> None:
    """One pass: `i` of the block, as in the factored form."""
    direction = parts.sign(plan)
    parts.write_decays(plan, direction, refs.dt[0, i], refs.a[0, i], refs.columns, refs.rows)
    columns, rows = refs.columns[...], refs.rows[...]
    ahead = -direction * parts.distance(plan)
    sums = jnp.zeros((plan.chunk, LANES), jnp.float32)
    sum_lane = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 1)
    r_rows = []
    dscores = jnp.zeros_like(refs.scores)
    dB, dC = refs.dB_sum[...], refs.dC_sum[...]
    B, C = refs.B_kept[...], refs.C_kept[...]

    for tile, lanes in parts.over_tiles(plan, i):
        x = parts.kept(valid, refs.x[0, :, lanes].astype(jnp.float32))
        dy = parts.kept(valid, refs.dy[0, :, lanes].astype(jnp.float32))
        step, after, enter = (parts.spread(plan, columns, q, tile) for q in (parts.STEP, parts.AFTER, parts.ENTER))
        stepped = x * step
        factor, dy_factor = stepped.astype(plan.dtype), dy.astype(plan.dtype)
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        matrices = []
        for u in range(plan.per_tile):
            head = tile * plan.per_tile + u
            own = factor
            if plan.per_tile > 1:
                own = jnp.where(lane // plan.head_dim == u, stepped, 0).astype(plan.dtype)
            weights = _weights(plan, columns, rows, head)
            dweighted = weights * parts.dot(own, dy_factor, transposed=True)  # L_ij dt_j (x_j dy_i)
            dscores += dweighted
            K = jnp.where(ahead > 0, dweighted * refs.scores[...], 0)
            r_rows.append(jnp.sum(K, axis=0, keepdims=True))
            sums = jnp.where(sum_lane == _MINUS + head, jnp.sum(K, axis=1, keepdims=True), sums)
            matrices.append(jnp.where(ahead >= 0, weights * refs.scores[...], 0).astype(plan.dtype))

        within = parts.dot(jnp.concatenate(matrices, axis=0), dy_factor)
        within = parts.per_head(plan, [within[u * plan.chunk : (u + 1) * plan.chunk] for u in range(plan.per_tile)])
        dstate, entering = refs.kept_state[:, lanes], refs.states[0, 0, :, lanes]
        dstate_factor = dstate.astype(plan.dtype)
        through_state = after * parts.dot(B, dstate_factor)
        z = within + through_state
        dx = step * z
        if refs.D is not None:
            dx += refs.D[0, :, lanes] * dy
        made.x[0, :, lanes] = dx.astype(plan.dtype)

        entered = enter * dy
        entered_factor = entered.astype(plan.dtype)
        total = parts.spread(plan, columns[:SUBLANES], parts.TOTAL, tile)[:1]
        kept_on = total * jnp.sum(entering.astype(jnp.float32) * dstate, axis=0, keepdims=True)
        from_state = parts.add_at_last(direction, entered * parts.dot(C, entering), kept_on)
        for first, value in ((_DDT, x * z), (_BEFORE, stepped * through_state), (_UPTO, from_state)):
            for u in range(plan.per_tile):
                own = value if plan.per_tile == 1 else jnp.where(lane // plan.head_dim == u, value, 0)
                column = first + tile * plan.per_tile + u
                sums = jnp.where(sum_lane == column, jnp.sum(own, axis=1, keepdims=True), sums)

        dC += parts.dot(entered_factor, entering, transposed=True)
        dB += parts.dot((stepped * after).astype(plan.dtype), dstate_factor, transposed=True)
        refs.dstate[:, lanes] = total * dstate + parts.dot(refs.back[plan.chunk :], entered_factor)
        refs.whole[:, lanes] = jnp.zeros((SUBLANES, plan.width), jnp.float32)

    refs.dscores[: plan.chunk] += dscores.T
    refs.dB_sum[...], refs.dC_sum[...] = dB, dC
    sums = sums.T
    ddt, before, upto, minus = (sums[first : first + SUBLANES] for first in (_DDT, _BEFORE, _UPTO, _MINUS))
    empty = [jnp.zeros((SUBLANES - plan.unroll, plan.chunk), jnp.float32)] if plan.unroll < SUBLANES else []
    made.dt[0, i] = ddt[: plan.unroll]
    refs.before[i] = before
    refs.upto[i] = upto + jnp.concatenate(r_rows + empty, axis=0) - minus


def _weights(plan: Plan, columns: jax.Array, rows: jax.Array, head: int) -> jax.Array:
    """L_ij, j in the sublanes; where i comes before j, some number up to 1."""
    own = slice(parts.SUMS + head, parts.SUMS + head + 1)
    weights = jnp.exp2(jnp.minimum(rows[head : head + 1] - columns[:, own], 0))
    count = slice(parts.COUNT + head, parts.COUNT + head + 1)
    return jnp.where(rows[SUBLANES + head : SUBLANES + head + 1] == columns[:, count], weights, 0)
