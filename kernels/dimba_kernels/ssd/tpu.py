"""`ssd` for TPUs, in chunks, as Pallas kernels: the state stays in VMEM while a core walks along the sequence.

The backward pass keeps the inputs alone. It recomputes the states that enter the chunks, in the dtype of x, and walks
back over them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.ssd import tpu_layout as layout
from dimba_kernels.ssd.tpu_backward import backward
from dimba_kernels.ssd.tpu_forward import entering_states, forward
from dimba_kernels.ssd.tpu_layout import Plan, plan_for
from dimba_kernels.ssd.tpu_tiles import tiles

Arrays = dict[str, Any]
_MOST_STATE = 512


def unsupported(x: jax.Array, B: jax.Array, **arguments: Any) -> str | None:
    """Why these arguments of an operation cannot run here, None if they can."""
    del arguments
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"x is {x.dtype}, and the kernels are for float32 and bfloat16"
    if B.shape[-1] > _MOST_STATE:
        return f"a state of {B.shape[-1]} numbers is more than the {_MOST_STATE} that fit beside a block of heads"
    if 0 in x.shape or 0 in B.shape:
        return f"x has shape {x.shape} and B {B.shape}: there is nothing to compute"
    return None


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    reverse: bool,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd`; the table of tiles chooses the chunk."""
    del chunk
    D, h0 = (None if value is None else value[None] for value in (D, h0))
    y, last = _scans(x[None], dt[None], A[None], B[None], C[None], D, h0, mask, segments, (reverse,))
    return y[0], last[0]


def ssd_pair(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd_pair`: the rows of both scans are one batch, and each row knows its direction."""
    del chunk
    return _scans(x, dt, A, B, C, D, h0, mask, segments, (False, True))


def ssd_bidirectional(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    chunk: int | None,
) -> jax.Array:
    """See `dimba_kernels.ssd_bidirectional`."""
    del chunk
    plan = _plan(x, B, (False,), mask)
    dt_rows, a = layout.decays(plan, dt, A, mask, segments, False)
    _, other_a = layout.decays(plan, dt, A, mask, segments, True)
    arrays = dict(
        x=layout.to_lanes(plan, x),
        dt=dt_rows,
        a=a,
        other_a=other_a,
        B=layout.states_by_group(plan, B),
        C=layout.states_by_group(plan, C),
        D=None if D is None else _by_lane(plan, D[None]),
        valid=layout.validity(plan, mask),
    )
    return layout.from_lanes(plan, _both(plan, arrays), *x.shape[2:])


def _plan(x: jax.Array, B: jax.Array, directions: tuple[bool, ...], mask: jax.Array | None) -> Plan:
    device = jax.devices()[0]
    table = tiles(device.device_kind if device.platform == "tpu" else "")
    groups, state = B.shape[-2:]
    return plan_for(x.shape, groups, state, x.dtype.name, directions, mask is not None, table)


def _by_lane(plan: Plan, D: jax.Array) -> jax.Array:
    """(directions, h) -> (directions, 1, lanes)."""
    spread = jnp.broadcast_to(D.astype(jnp.float32)[..., None], (*D.shape, plan.head_dim))
    return layout.to_lanes(plan, spread)[:, None]


def _scans(x, dt, A, B, C, D, h0, mask, segments, directions: tuple[bool, ...]) -> tuple[jax.Array, jax.Array]:
    """Every array but mask and segments with a leading axis of the directions; so are the results."""
    _, b, l, h, p = x.shape
    n = B.shape[-1]
    plan = _plan(x[0], B, directions, mask)

    def rows(value: jax.Array) -> jax.Array:
        return value.reshape(-1, *value.shape[2:])

    decays = [layout.decays(plan, dt[i], A[i], mask, segments, reverse) for i, reverse in enumerate(directions)]
    arrays = dict(
        x=layout.to_lanes(plan, rows(x)),
        dt=jnp.concatenate([first for first, _ in decays]),
        a=jnp.concatenate([second for _, second in decays]),
        B=layout.states_by_group(plan, rows(B)),
        C=layout.states_by_group(plan, rows(C)),
        D=None if D is None else _by_lane(plan, D),
        h0=None if h0 is None else layout.state_to_rows(plan, rows(h0)),
        valid=layout.validity(plan, mask),
    )
    results: Any = _core(plan, arrays)
    y, last = results
    y = layout.from_lanes(plan, y, h, p).reshape(x.shape)
    return y, layout.state_from_rows(plan, last, h, p, n).reshape(-1, b, h, p, n)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _core(plan: Plan, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    return forward(plan, arrays | dict(fits=layout.factored(plan, arrays["a"])))


def _core_forward(plan: Plan, arrays: Arrays) -> tuple[tuple[jax.Array, jax.Array], Arrays]:
    return _core(plan, arrays), arrays


def _core_backward(plan: Plan, arrays: Arrays, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Arrays]:
    plan = plan.for_backward
    given = arrays | dict(fits=layout.factored(plan, arrays["a"]))
    made = backward(plan, given, entering_states(plan, given), *cotangents)
    return (_gradients(plan, arrays, made),)


_core.defvjp(_core_forward, _core_backward)


def _gradients(plan: Plan, arrays: Arrays, made: Arrays) -> Arrays:
    """Sum up the parts that the kernel leaves apart."""
    skip = arrays["D"]
    return dict(
        x=made["x"],
        dt=made["dt"],
        a=made["a"],
        B=made["B"].sum(axis=1).astype(plan.dtype),
        C=made["C"].sum(axis=1).astype(plan.dtype),
        D=None if skip is None else _summed_skip(plan, made["D"]),
        h0=made.get("h0"),
        valid=_zeros(arrays["valid"]),
    )


def _summed_skip(plan: Plan, parts: jax.Array) -> jax.Array:
    """(launch rows, 8, lanes) -> (directions, 1, lanes)."""
    return parts.reshape(len(plan.directions), -1, plan.lanes).sum(axis=1, keepdims=True)


def _zeros(value: jax.Array | None) -> jax.Array | None:
    return None if value is None else jnp.zeros_like(value)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _both(plan: Plan, arrays: Arrays) -> jax.Array:
    """The states of the reverse scan first; the forward scan then does the rest in one sweep."""
    back = replace(plan, directions=(True,))
    fits = layout.factored(plan, arrays["a"]) * layout.factored(plan, arrays["other_a"])
    given = arrays | dict(h0=None, fits=fits)
    states = entering_states(back, given | dict(a=arrays["other_a"]))
    y, _ = forward(plan, given, dict(a=arrays["other_a"], states=states))
    return y


def _both_forward(plan: Plan, arrays: Arrays) -> tuple[jax.Array, Arrays]:
    return _both(plan, arrays), arrays


def _both_backward(plan: Plan, arrays: Arrays, dy: jax.Array) -> tuple[Arrays]:
    """The gradients of two scans of the same arrays, in one launch; D counts in the first."""
    pair = replace(plan.for_backward, directions=(False, True), shared=True)
    skip = arrays["D"]
    a = jnp.concatenate([arrays["a"], arrays["other_a"]])
    given: Arrays = arrays | dict(
        a=a,
        fits=layout.factored(pair, a),
        D=None if skip is None else jnp.concatenate([skip, jnp.zeros_like(skip)]),
        h0=None,
    )
    made = _gradients(pair, given, backward(pair, given, entering_states(pair, given), dy, None))

    def halves(value: jax.Array) -> jax.Array:
        return value.reshape(2, -1, *value.shape[1:])

    summed = {
        name: halves(made[name].astype(jnp.float32)).sum(axis=0).astype(made[name].dtype)
        for name in ("x", "dt", "B", "C")
    }
    a, other_a = halves(made["a"])
    return (summed | dict(a=a, other_a=other_a, D=None if skip is None else made["D"][:1], valid=made["valid"]),)


_both.defvjp(_both_forward, _both_backward)
