"""The backward TPU kernel of `ssd`: it walks the chunks against the scan with the gradient of the state in VMEM.

Matrices of a chunk stand here on their side, position j (which acts) in the sublanes and i (which is acted upon) in
the lanes. With S and S' the products C_i B_j where j comes before i, with the diagonal and without, s their diagonal,
q, k and r as in `tpu_forward`, h the entering state, dh the gradient of the leaving one, x^ = k dt x and d^ = q dy:

    z_j   = k_j (S'^T d^ + B (r dh))_j + s_j dy_j       dx = dt z + D dy                ddt_j = x_j z_j
    dS    = sum over heads of x^ d^^T                   dC = dS B + d^ (r h)^T          dB = dS^T C + x^ (r dh)^T
    dh_in = r (r dh + C^T d^)
    da_k  = sum_{i>=k} (d^ (S' x^ + C (r h)) - x^ (S'^T d^ + B (r dh)))_i + sum_j x^_j (B (r dh))_j + <r h, r dh>

In da, the terms of S' are the row and column sums of one matrix of numbers S'_ij x^_j d^_i, all factors as rounded for
the matmuls: what cancels between them cancels but for the rounding of float32 sums. A difference of y dy and x dx
would not. `tpu_backward_pairwise` does the same where the decays of a chunk cannot be factored.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.ssd import tpu_blocks as blocks
from dimba_kernels.ssd import tpu_parts as parts
from dimba_kernels.ssd.tpu_backward_pairwise import pairwise
from dimba_kernels.ssd.tpu_layout import SUBLANES, Plan
from dimba_kernels.ssd.tpu_tiles import LANES

Arrays = dict[str, Any]


def backward(plan: Plan, arrays: Arrays, states: jax.Array, dy: jax.Array, dlast: jax.Array | None) -> Arrays:
    """Gradients of `arrays` by name, for every launch row.

    dB and dC come in one part for each block of heads, (launch rows, blocks, length, groups * state) in float32, and
    dD in parts (launch rows, 8, lanes).
    """
    rows, length = plan.launch_rows, plan.length
    group_parts = jax.ShapeDtypeStruct((rows, plan.blocks, length, plan.groups * plan.state), jnp.float32)
    by_group = blocks.Block(
        group_parts,
        (1, 1, plan.chunk, plan.state),
        lambda row, heads, chunk: (row, heads % plan.blocks, chunk, heads // plan.blocks),
    )
    by_pass = jax.ShapeDtypeStruct((rows, *arrays["a"].shape[1:]), jnp.float32)
    skip = jax.ShapeDtypeStruct((rows, SUBLANES, plan.lanes), jnp.float32)
    by_lane = blocks.Block(skip, (1, SUBLANES, plan.block_lanes), lambda row, heads, chunk: (row, 0, heads))
    square, decays = (plan.chunk, plan.chunk), (plan.passes, SUBLANES, plan.chunk)
    return blocks.launch(
        _backward,
        plan,
        dict(
            x=blocks.sequence(plan, arrays["x"]),
            dt=blocks.by_pass(plan, arrays["dt"], shared=True),
            a=blocks.by_pass(plan, arrays["a"]),
            fits=blocks.factored(plan, arrays["fits"]),
            B=blocks.by_group(plan, arrays["B"]),
            C=blocks.by_group(plan, arrays["C"]),
            D=blocks.by_lane(plan, arrays["D"]),
            valid=blocks.by_position(plan, arrays["valid"]),
            states=blocks.chunk_states(plan, states),
            dy=blocks.sequence(plan, dy),
            dlast=blocks.state(plan, dlast),
        ),
        dict(
            x=blocks.made_sequence(plan),
            dt=blocks.by_pass(plan, by_pass),
            a=blocks.by_pass(plan, by_pass),
            B=by_group,
            C=by_group,
            D=None if arrays["D"] is None else by_lane,
            h0=None if arrays["h0"] is None else blocks.made_state(plan),
        ),
        dict(
            dstate=((plan.state, plan.block_lanes), jnp.float32),
            factors=parts.factor_scratch(plan, 4),
            columns=((plan.chunk, LANES), jnp.float32),
            rows=((2 * SUBLANES, plan.chunk), jnp.float32),
            B_kept=((plan.chunk, plan.state), plan.dtype),
            C_kept=((plan.chunk, plan.state), plan.dtype),
            C_turned=((plan.state, plan.chunk), plan.dtype),
            scores=(square, jnp.float32),
            strict=(square, plan.dtype),
            strict_turned=(square, plan.dtype),
            diagonal=((plan.chunk, plan.span * plan.width), jnp.float32),
            dscores=(square, jnp.float32),
            acting=((plan.chunk, plan.block_lanes), plan.dtype),
            dacted=((plan.chunk + plan.state, plan.block_lanes), plan.dtype),
            half_state=((plan.state, plan.block_lanes), plan.dtype),
            dB_sum=((plan.chunk, plan.state), jnp.float32),
            dC_sum=((plan.chunk, plan.state), jnp.float32),
            upto=(decays, jnp.float32),
            before=(decays, jnp.float32),
        ),
        name="ssd_backward",
        backwards=True,
    )


def _backward(plan: Plan, refs: Any, made: Any) -> None:
    @parts.at_first()
    def _() -> None:
        refs.dstate[...] = jnp.zeros_like(refs.dstate) if refs.dlast is None else refs.dlast[0].T
        if made.D is not None:
            made.D[...] = jnp.zeros_like(made.D)

    valid = parts.valid_column(plan, refs.valid)
    direction = parts.sign(plan)
    parts.write_factors(plan, direction, refs, refs.a, refs.factors, inverse=True)
    refs.B_kept[...], refs.C_kept[...] = parts.kept(valid, refs.B[0]), parts.kept(valid, refs.C[0])
    refs.C_turned[...] = parts.turned(refs.C_kept[...])
    refs.scores[...] = parts.dot(refs.B_kept[...], refs.C_kept[...], transposed=True)
    ahead = -direction * parts.distance(plan)  # how far the column i lies behind the row j in the order of the scan
    strict = jnp.where(ahead > 0, refs.scores[...], 0)
    refs.strict_turned[...], refs.strict[...] = strict.astype(plan.dtype), strict.T.astype(plan.dtype)
    diagonal = jnp.sum(jnp.where(ahead == 0, refs.scores[...], 0), axis=1, keepdims=True)
    refs.diagonal[...] = jnp.broadcast_to(diagonal, refs.diagonal.shape)
    for total in (refs.dscores, refs.dB_sum, refs.dC_sum):
        total[...] = jnp.zeros_like(total)

    parts.over_passes(
        plan,
        refs,
        lambda i: _factored(plan, refs, made, valid, i),
        lambda i: pairwise(plan, refs, made, valid, i),
    )

    over_heads = parts.dot(refs.acting[...], refs.dacted[...], transposed=True)
    dscores = jnp.where(ahead >= 0, refs.dscores[...] + over_heads[:, : plan.chunk], 0)
    made.B[0, 0] = (
        refs.dB_sum[...] + over_heads[:, plan.chunk :] + parts.dot(dscores.astype(plan.dtype), refs.C_kept[...])
    )
    over_heads = parts.dot(refs.dacted[: plan.chunk], refs.half_state[...], transposed=True)
    made.C[0, 0] = refs.dC_sum[...] + over_heads + parts.dot(dscores.T.astype(plan.dtype), refs.B_kept[...])
    flat = (plan.passes * SUBLANES, plan.chunk)
    da = parts.sums_along(refs.upto[...].reshape(flat), parts.triangles(ahead <= 0))
    da += parts.sums_along(refs.before[...].reshape(flat), parts.triangles(ahead > 0))
    made.a[0] = da.reshape(plan.passes, SUBLANES, plan.chunk)[:, : plan.unroll]

    if made.h0 is not None:

        @parts.at_last(plan)
        def _() -> None:
            made.h0[0] = refs.dstate[...].T


def _factored(plan: Plan, refs: Any, made: Any, valid: jax.Array | None, i: int) -> None:
    """One pass. What the second half needs of the first lies in scratch: the registers cannot hold it."""
    direction = parts.sign(plan)
    fits = refs.fits[0, 0, i, refs.chunk] == 1
    ddt = upto = jnp.zeros((SUBLANES, plan.chunk), jnp.float32)
    for span, lanes in parts.over_tiles(plan, i, plan.span):
        acted, acting = parts.factors(plan, refs.factors, i, span, (0, 1), 4)
        half = parts.last_row(direction, acted)
        half_dstate = half * refs.dstate[:, lanes]
        refs.acting[:, lanes] = (_load(refs.x, valid, lanes) * acting).astype(plan.dtype)
        refs.dacted[: plan.chunk, lanes] = dacted = (_load(refs.dy, valid, lanes) * acted).astype(plan.dtype)
        refs.dacted[plan.chunk :, lanes] = half_dstate.astype(plan.dtype)
        refs.half_state[:, lanes] = (half * refs.states[0, 0, :, lanes].astype(jnp.float32)).astype(plan.dtype)
        new_dstate = half * (half_dstate + parts.dot(refs.C_turned[...], dacted))
        refs.dstate[:, lanes] = jnp.where(fits, new_dstate, refs.dstate[:, lanes])

    for span, lanes in parts.over_tiles(plan, i, plan.span):
        dacted, dstate = refs.dacted[: plan.chunk, lanes], refs.dacted[plan.chunk :, lanes]
        acting, state = refs.acting[:, lanes], refs.half_state[:, lanes]
        from_state = parts.dot(refs.B_kept[...], dstate)
        dacting = parts.dot(refs.strict_turned[...], dacted) + from_state
        products = parts.dot(refs.strict[...], acting) + parts.dot(refs.C_kept[...], state)
        acting = acting.astype(jnp.float32)
        change = dacted.astype(jnp.float32) * products - acting * dacting
        # what the whole chunk decays: as if at its last position, up to which all positions count
        whole = jnp.sum(state.astype(jnp.float32) * dstate.astype(jnp.float32), axis=0, keepdims=True)
        whole += jnp.sum(acting * from_state, axis=0, keepdims=True)
        upto += parts.head_sums(plan, parts.add_at_last(direction, change, whole), span)

        inverse, step = parts.factors(plan, refs.factors, i, span, (2, 3), 4)
        x, dy = _load(refs.x, valid, lanes), _load(refs.dy, valid, lanes)
        z = inverse * dacting + refs.diagonal[...] * dy
        dx = step * z
        if refs.D is not None:
            dx += refs.D[0, :, lanes] * dy
            made.D[0, :, lanes] += (dy * x).reshape(plan.chunk // SUBLANES, SUBLANES, -1).sum(axis=0)
        made.x[0, :, lanes] = dx.astype(plan.dtype)
        ddt += parts.head_sums(plan, x * z, span)

    made.dt[0, i] = ddt[: plan.unroll]
    refs.upto[i] = upto
    refs.before[i] = jnp.zeros_like(upto)


def _load(values: Any, valid: jax.Array | None, lanes: Any) -> jax.Array:
    return parts.kept(valid, values[0, :, lanes].astype(jnp.float32))
