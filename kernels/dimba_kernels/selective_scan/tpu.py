"""`selective_scan` on TPU: what the kernels take and give, and the gradient around them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dimba_kernels.selective_scan.tpu_backward import APART, backward
from dimba_kernels.selective_scan.tpu_kernels import Plan, forward
from dimba_kernels.selective_scan.tpu_tiles import tiles
from dimba_kernels.tpu_layout import (
    LANES,
    ROWS,
    channel_tiles,
    channels,
    device_kind,
    from_rows,
    padded,
    rows_scratch,
    rows_spec,
    to_rows,
    up,
)
from dimba_kernels.tpu_walk import Blocks, launch

_LOG2E = 1.4426950408889634


class _Arrays(NamedTuple):
    """What the kernels read: (b, l, d) in rows or as they are, channels as (..., tiles, groups, 128)."""

    u: jax.Array
    dt: jax.Array
    z: jax.Array | None
    A: jax.Array  # states tiles groups 128
    B: jax.Array  # b l states
    C: jax.Array
    D: jax.Array  # tiles groups 128
    bias: jax.Array
    h0: jax.Array  # b states tiles groups 128
    flags: jax.Array | None  # b l 1 or 2: counts, and does the state come in?


def unsupported(u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, **_: Any) -> str | None:
    """Why these arguments cannot run here, None if they can."""
    types = {value.dtype.name for value in (u, dt, A, B, C)}
    if not types <= {"float32", "bfloat16"}:
        return f"the TPU kernel takes float32 and bfloat16, not {', '.join(sorted(types))}"
    if 0 in (*u.shape, *A.shape):
        return "an axis is empty"
    if A.shape[1] > LANES:
        return f"the TPU kernel takes up to {LANES} states, not {A.shape[1]}"
    return None


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    z: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None = None,
    dt_bias: jax.Array | None = None,
    dt_softplus: bool = False,
    reverse: bool,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.selective_scan`; `chunk` has no effect here."""
    del chunk
    b, l, d = u.shape
    n = A.shape[1]
    wide = up(d, LANES)
    count, groups = channel_tiles(wide)
    tile = tiles(device_kind(), l, n)
    narrow = any(value is not None and value.dtype != jnp.float32 for value in (u, dt, z))
    long = up(l, 2 * ROWS if narrow else ROWS)  # no copy where it is l
    whole = up(l, tile.block)

    def positions(value: jax.Array) -> jax.Array:
        return to_rows(padded(padded(value, 2, wide), 1, long))

    def scalars(value: jax.Array) -> jax.Array:
        value = value.astype(jnp.float32)
        if mask is not None:
            value = jnp.where(mask[..., None], value, 0)
        return padded(padded(value, 2, tile.states), 1, whole)

    def per_channel(value: jax.Array | None) -> jax.Array:
        return channels(jnp.zeros(d, jnp.float32) if value is None else value, count, groups)

    if dt_bias is not None and not dt_softplus:
        dt = dt.astype(jnp.float32) + dt_bias.astype(jnp.float32)
    h0 = jnp.zeros((b, d, n), jnp.float32) if h0 is None else h0
    arrays = _Arrays(
        u=positions(u),
        dt=positions(dt),
        z=None if z is None else positions(z),
        A=channels(padded(A, 1, tile.states).T, count, groups),
        B=scalars(B),
        C=scalars(C),
        D=per_channel(D),
        bias=per_channel(dt_bias),
        h0=channels(padded(h0, 2, tile.states).transpose(0, 2, 1), count, groups),
        flags=_flags(mask, segments, b, l, whole, reverse),
    )
    plan = Plan(
        tile.block,
        tile.states,
        tile.chunk,
        groups,
        ragged=wide // LANES if count * groups * LANES != wide else None,
        softplus=dt_softplus,
        segmented=segments is not None,
        reverse=reverse,
    )
    y, h_last = cast(tuple[jax.Array, jax.Array], _scan(plan, arrays))
    h_last = h_last.reshape(b, tile.states, count * groups * LANES)[:, :n, :d].transpose(0, 2, 1)
    return from_rows(y)[:, :l, :d], h_last


def _flags(
    mask: jax.Array | None, segments: jax.Array | None, b: int, l: int, whole: int, reverse: bool
) -> jax.Array | None:
    """(b, whole, 1 or 2) float32, or None where every position of every block counts and nothing starts anew."""
    if mask is None and segments is None and whole == l:
        return None
    columns = [padded(jnp.ones((b, l), bool) if mask is None else mask, 1, whole)]
    if segments is not None:
        same = segments[:, 1:] == segments[:, :-1]
        before, after = (0, 1) if reverse else (1, 0)
        # behind the end the state passes
        columns.append(jnp.pad(same, [(0, 0), (before, after + whole - l)], constant_values=True))
    return jnp.stack(columns, axis=2).astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(plan: Plan, arrays: _Arrays) -> tuple[jax.Array, jax.Array]:
    found = _forward(plan, arrays, save=False)
    return found["y"], found["h_last"]


def _scan_forward(plan: Plan, arrays: _Arrays) -> tuple[tuple[jax.Array, jax.Array], tuple[_Arrays, jax.Array]]:
    found = _forward(plan, arrays, save=True)
    return (found["y"], found["h_last"]), (arrays, found["entries"])


class _Frame:
    """Grid and block specs of a call: (batch, tile of channels, block of positions).

    visit: block in order of the grid -> block in natural order.
    """

    def __init__(self, plan: Plan, arrays: _Arrays, backwards: bool) -> None:
        self.plan, self.arrays = plan, arrays
        self.b, self.count = arrays.h0.shape[0], arrays.h0.shape[2]
        self.blocks = arrays.B.shape[1] // plan.block
        flipped = plan.reverse != backwards
        self.visit = (lambda i: self.blocks - 1 - i) if flipped else (lambda i: i)
        self.walked = (lambda i: self.blocks - 1 - i) if backwards else (lambda i: i)
        self.grid = (self.b, self.count, self.blocks)

    def inputs(self) -> Blocks:
        a = self.arrays
        found: Blocks = {
            "u": (a.u, self.rows(a.u)),
            "dt": (a.dt, self.rows(a.dt)),
            "A": (a.A * _LOG2E, self.per_state()),
        }
        if a.z is not None:
            found["z"] = (a.z, self.rows(a.z))
        found |= {"B": (a.B, self.scalars(a.B)), "C": (a.C, self.scalars(a.C))}
        found |= {"D": (a.D, self.per_channel()), "bias": (a.bias, self.per_channel())}
        if a.flags is not None:
            found["flags"] = (a.flags, self.scalars(a.flags))
        return found

    def rows(self, value: jax.Array) -> pl.BlockSpec:
        return rows_spec(value.dtype, self.plan.block, self.plan.groups, lambda b, tile, i: (b, self.visit(i), tile))

    def scalars(self, value: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.plan.block, value.shape[2]), lambda b, tile, i: (b, self.visit(i), 0))

    def per_channel(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.plan.groups, LANES), lambda b, tile, i: (tile, 0, 0))

    def per_state(self) -> pl.BlockSpec:
        return pl.BlockSpec((self.plan.states, None, self.plan.groups, LANES), lambda b, tile, i: (0, tile, 0, 0))

    def state(self) -> pl.BlockSpec:
        shape = (None, self.plan.states, None, self.plan.groups, LANES)
        return pl.BlockSpec(shape, lambda b, tile, i: (b, 0, tile, 0, 0))

    def entries(self) -> pl.BlockSpec:
        shape = (None, None, self.plan.states, None, self.plan.groups, LANES)
        return pl.BlockSpec(shape, lambda b, tile, i: (b, self.walked(i), 0, tile, 0, 0))

    def entries_shape(self) -> jax.ShapeDtypeStruct:
        b, states, *rest = self.arrays.h0.shape
        return jax.ShapeDtypeStruct((b, self.blocks, states, *rest), jnp.float32)

    def call(self, kernel: Any, inputs: Blocks, outputs: Blocks, scratch: dict[str, Any]) -> dict[str, jax.Array]:
        plan = self.plan
        spread = pltpu.VMEM((2 * plan.chunk, ROWS, LANES), jnp.float32)
        scratch |= {"spread0": spread, "spread1": spread}
        vmem = tiles(device_kind(), plan.block, plan.states).vmem
        name = f"selective_scan_{kernel.__name__}"
        return launch(kernel, plan, self.grid, inputs, outputs, scratch, vmem=vmem, name=name)


def _forward(plan: Plan, arrays: _Arrays, save: bool) -> dict[str, jax.Array]:
    frame = _Frame(plan, arrays, backwards=False)
    outputs: Blocks = {"y": (arrays.u, frame.rows(arrays.u)), "h_last": (arrays.h0, frame.state())}
    if save:
        outputs["entries"] = (frame.entries_shape(), frame.entries())
    return frame.call(forward, frame.inputs() | {"h0": (arrays.h0, frame.state())}, outputs, {})


def _scan_backward(
    plan: Plan, residuals: tuple[_Arrays, jax.Array], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[_Arrays]:
    arrays, entries = residuals
    dout, dh_last = cotangents
    frame = _Frame(plan, arrays, backwards=True)
    inputs = frame.inputs() | {
        "dout": (dout, frame.rows(dout)),
        "dh_last": (dh_last, frame.state()),
        "entries": (entries, frame.entries()),
    }
    states, *rest = arrays.A.shape
    share = jax.ShapeDtypeStruct((frame.b, frame.count, arrays.B.shape[1], LANES), jnp.float32)
    share_spec = pl.BlockSpec((None, None, plan.block, LANES), lambda b, tile, i: (b, tile, frame.visit(i), 0))
    per_channel = jax.ShapeDtypeStruct((frame.b, *rest), jnp.float32)
    channel_spec = pl.BlockSpec((None, None, plan.groups, LANES), lambda b, tile, i: (b, tile, 0, 0))
    outputs: Blocks = {
        "du": (arrays.u, frame.rows(arrays.u)),
        "ddt": (arrays.dt, frame.rows(arrays.dt)),
        "dB": (share, share_spec),
        "dC": (share, share_spec),
        "dA": (arrays.h0, frame.state()),
        "dD": (per_channel, channel_spec),
        "dbias": (per_channel, channel_spec),
        "dh0": (arrays.h0, frame.state()),
    }
    if arrays.z is not None:
        outputs["dz"] = (arrays.z, frame.rows(arrays.z))
    products = pltpu.VMEM((plan.chunk, ROWS * APART, LANES), jnp.float32)
    scratch = {
        "states": pltpu.VMEM((plan.block + 1, states, plan.groups, LANES), jnp.float32),
        "products_B": products,
        "products_C": products,
        "dy": rows_scratch(plan.block, plan.groups),
    }
    found = frame.call(backward, inputs, outputs, scratch)
    gradients = _Arrays(
        u=found["du"],
        dt=found["ddt"],
        z=found.get("dz"),
        A=jnp.sum(found["dA"], axis=0),
        B=jnp.sum(found["dB"], axis=1)[..., :states],
        C=jnp.sum(found["dC"], axis=1)[..., :states],
        D=jnp.sum(found["dD"], axis=0),
        bias=jnp.sum(found["dbias"], axis=0),
        h0=found["dh0"],
        flags=None if arrays.flags is None else jnp.zeros_like(arrays.flags),
    )
    return (gradients,)


_scan.defvjp(_scan_forward, _scan_backward)
