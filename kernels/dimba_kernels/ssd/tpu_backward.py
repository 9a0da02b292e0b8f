"""The backward TPU kernel of `ssd`: it walks the chunks against the scan with the gradient of the state in VMEM.

With S the products C_i B_j where j does not come after i, q, k and r as in `tpu_forward`, h the entering state, dh the
gradient of the leaving one, x^ = k dt x and d^ = q dy:

    z_j   = k_j (S^T d^ + B (r dh))_j               dx = dt z + D dy                ddt_j = x_j z_j
    dS    = sum over heads of x^ d^^T               dC = dS B + d^ (r h)^T          dB = dS^T C + x^ (r dh)^T
    dh_in = r (r dh + C^T d^)
    da_k  = sum_{i>=k} (d^ (S x^ + C (r h)) - x^ (S^T d^ + B (r dh)))_i + sum_j x^_j (B (r dh))_j + <r h, r dh>

In da, the terms of S are the row and column sums of one matrix of numbers S_ij x^_j d^_i, all factors as rounded for
the matmuls: what cancels between them cancels but for the rounding of float32 sums. A difference of y dy and x dx
would not. `tpu_backward_factored` does this, `tpu_backward_pairwise` the same where the decays of a chunk cannot be
factored.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.ssd import tpu_blocks as blocks
from dimba_kernels.ssd import tpu_parts as parts
from dimba_kernels.ssd.tpu_backward_factored import factored
from dimba_kernels.ssd.tpu_backward_pairwise import pairwise
from dimba_kernels.ssd.tpu_layout import SUBLANES, Plan
from dimba_kernels.ssd.tpu_operands import OperandShape
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
            kept_state=((plan.state, plan.block_lanes), jnp.float32),
            factors=parts.factor_scratch(plan),
            columns=((plan.chunk, LANES), jnp.float32),
            rows=((2 * SUBLANES, plan.chunk), jnp.float32),
            B_kept=OperandShape(plan.chunk, plan.state, plan.dtype),
            C_kept=OperandShape(plan.chunk, plan.state, plan.dtype),
            scores=(square, jnp.float32),
            ahead=OperandShape(plan.chunk, plan.chunk, plan.dtype),
            back=OperandShape(plan.chunk + plan.state, plan.chunk, plan.dtype),
            acting=OperandShape(plan.chunk, plan.block_lanes, plan.dtype),
            dacted=OperandShape(plan.chunk + plan.state, plan.block_lanes, plan.dtype),
            dscores=((plan.chunk + plan.state, plan.chunk), jnp.float32),
            dB_sum=((plan.chunk, plan.state), jnp.float32),
            dC_sum=((plan.chunk, plan.state), jnp.float32),
            upto=(decays, jnp.float32),
            before=(decays, jnp.float32),
            whole=((SUBLANES, plan.block_lanes), jnp.float32),
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
    parts.write_factors(plan, direction, refs, refs.a, refs.factors, logs=True)
    refs.B_kept[...], refs.C_kept[...] = parts.kept(valid, refs.B[0]), parts.kept(valid, refs.C[0])
    refs.scores[...] = parts.dot(refs.B_kept[...], refs.C_kept[...], transposed=True)
    ahead = -direction * parts.distance(plan)  # how far the column i lies behind the row j in the order of the scan
    scores = jnp.where(ahead >= 0, refs.scores[...], 0)
    refs.back[: plan.chunk], refs.ahead[...] = scores.astype(plan.dtype), scores.T.astype(plan.dtype)
    refs.back[plan.chunk :] = parts.turned(refs.C_kept[...])
    for total in (refs.dscores, refs.dB_sum, refs.dC_sum):
        total[...] = jnp.zeros_like(total)

    parts.over_passes(
        plan,
        refs,
        refs.dstate,
        lambda: factored(plan, refs, made, valid),
        lambda i: pairwise(plan, refs, made, valid, i),
    )

    # i in the sublanes, as the sums over heads come
    dscores = jnp.where(ahead <= 0, refs.dscores[: plan.chunk], 0).astype(plan.dtype)
    dB = refs.dscores[plan.chunk :] + parts.dot(refs.back[plan.chunk :], dscores)
    made.B[0, 0] = refs.dB_sum[...] + dB.T
    made.C[0, 0] = refs.dC_sum[...] + parts.dot(dscores, refs.B_kept[...])
    _write_decays(plan, refs, made, ahead)

    if made.h0 is not None:

        @parts.at_last(plan)
        def _() -> None:
            made.h0[0] = refs.dstate[...].T


def _write_decays(plan: Plan, refs: Any, made: Any, ahead: jax.Array) -> None:
    """da of all passes, from what counts up to a position, behind it, and everywhere."""
    flat = (plan.passes * SUBLANES, plan.chunk)
    da = parts.sums_along(refs.upto[...].reshape(flat), parts.triangles(ahead <= 0))
    da += parts.sums_along(refs.before[...].reshape(flat), parts.triangles(ahead > 0))
    whole = [
        sum(
            parts.head_sums(plan, parts.in_parts(plan, refs.whole[:, lanes], exact=True), tile)
            for tile, lanes in parts.over_tiles(plan, i)
        )
        for i in range(plan.passes)
    ]
    da += jnp.sum(jnp.concatenate(whole, axis=0), axis=1, keepdims=True)
    made.a[0] = da.reshape(plan.passes, SUBLANES, plan.chunk)[:, : plan.unroll]
