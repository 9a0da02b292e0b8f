"""`causal_conv1d` on TPU: what the kernels take and give, and the gradient around them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dimba_kernels.causal_conv1d.tpu_kernels import Plan, backward, forward
from dimba_kernels.causal_conv1d.tpu_tiles import tiles
from dimba_kernels.tpu_layout import (
    LANES,
    ROWS,
    channel_tiles,
    channels,
    device_kind,
    from_rows,
    padded,
    rows_spec,
    to_rows,
    up,
)
from dimba_kernels.tpu_walk import Blocks, launch


class _Arrays(NamedTuple):
    x: jax.Array  # b l d, in rows where float32
    w: jax.Array  # k tiles groups 128
    bias: jax.Array  # tiles groups 128
    tail: jax.Array  # b k-1 tiles groups 128, in walking order
    flags: jax.Array | None  # b l, 1 or k


def unsupported(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, **_: Any) -> str | None:
    """Why these arguments cannot run here, None if they can."""
    if x.dtype.name not in ("float32", "bfloat16"):
        return f"the TPU kernel takes float32 and bfloat16, not {x.dtype.name}"
    if 0 in x.shape:
        return "an axis is empty"
    if not 2 <= w.shape[1] <= ROWS:
        return f"the TPU kernel takes windows of 2 to {ROWS} positions, not {w.shape[1]}"
    return None


def causal_conv1d(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    *,
    tail: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None = None,
    reverse: bool,
    activation: str | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.causal_conv1d`."""
    b, l, d = x.shape
    k = w.shape[1]
    wide = up(d, LANES)
    count, groups = channel_tiles(wide)
    block = tiles(device_kind(), l).block
    # Where blocks do not cut l evenly: behind the end the last one may stick out of an array of whole rows. In reverse
    # that is where the walk begins, and the tail must come right before the last position: pad the front.
    long = up(l, block if reverse else ROWS if x.dtype == jnp.float32 else 2 * ROWS)
    front = long - l if reverse else 0
    tail = jnp.zeros((b, k - 1, d), x.dtype) if tail is None else tail.astype(x.dtype)
    arrays = _Arrays(
        x=to_rows(padded(_shifted(padded(x, 2, wide), front), 1, long)),
        w=channels(w.T, count, groups),
        bias=channels(jnp.zeros(d, jnp.float32) if bias is None else bias, count, groups),
        tail=channels(tail[:, ::-1] if reverse else tail, count, groups),
        flags=_flags(mask, segments, (b, l), up(l, block), front, k, reverse),
    )
    plan = Plan(block, groups, k, segments is not None, activation == "silu", reverse)
    y = from_rows(_convolve(plan, arrays))[:, front : front + l, :d]
    return y, _next_tail(x, tail, mask, segments, reverse)


def _shifted(value: jax.Array, front: int) -> jax.Array:
    """Zeros (False) in front of the positions, axis 1."""
    return jnp.pad(value, [(front if i == 1 else 0, 0) for i in range(value.ndim)]) if front else value


def _next_tail(
    x: jax.Array, tail: jax.Array, mask: jax.Array | None, segments: jax.Array | None, reverse: bool
) -> jax.Array:
    """The k-1 inputs (b, k-1, d) at the end of the walk, without a copy of x: zeros where masked or of a segment before
    the last one."""
    l, before = x.shape[1], tail.shape[1]
    taken = min(l, before)
    end = slice(0, taken) if reverse else slice(l - taken, l)
    last = x[:, end] if mask is None else jnp.where(mask[:, end, None], x[:, end], 0)
    kept = tail[:, : before - taken] if reverse else tail[:, taken:]
    if segments is not None:
        ids = jnp.flip(segments, 1) if reverse else segments
        # in the walk's order: has the segment changed behind each of the last positions? (anywhere, for the old tail)
        changes = jnp.pad(ids[:, 1:] != ids[:, :-1], [(0, 0), (0, 1)])
        behind = jnp.flip(jnp.cumsum(jnp.flip(changes, 1), axis=1), 1)[:, l - taken :]
        gone = jnp.flip(behind, 1) if reverse else behind
        last = jnp.where((gone == 0)[..., None], last, 0)
        kept = jnp.where(jnp.any(changes, axis=1)[:, None, None], 0, kept)
    return jnp.concatenate([last, kept] if reverse else [kept, last], axis=1)


def _flags(
    mask: jax.Array | None,
    segments: jax.Array | None,
    shape: tuple[int, int],
    whole: int,
    front: int,
    k: int,
    reverse: bool,
) -> jax.Array | None:
    """(b, whole, 1 or k) float32, or None where every position of every block counts and sees all its window."""
    b, l = shape
    if mask is None and segments is None and whole == l:
        return None
    columns = [jnp.ones((b, l), bool) if mask is None else mask]
    if segments is not None:
        ids = jnp.flip(segments, 1) if reverse else segments
        # how often the segment has changed: a window reaches over one change as little as over two that end alike
        run = jnp.cumsum(jnp.pad(ids[:, 1:] != ids[:, :-1], [(0, 0), (1, 0)]), axis=1)
        for m in range(1, k):
            same = run[:, m:] == run[:, : max(l - m, 0)]
            # the tail belongs to the first segment
            linked = jnp.concatenate([run[:, : min(m, l)] == 0, same], axis=1)
            columns.append(jnp.flip(linked, 1) if reverse else linked)
    return padded(_shifted(jnp.stack(columns, axis=2).astype(jnp.float32), front), 1, whole)


class _Frame:
    """Grid and block specs of a call: (batch, tile of channels, block of positions).

    visit: block in order of the grid -> block in natural order.
    """

    def __init__(self, plan: Plan, arrays: _Arrays, backwards: bool) -> None:
        self.plan, self.arrays = plan, arrays
        length = arrays.x.shape[1] * (ROWS if arrays.x.ndim == 4 else 1)
        self.units = length // self.halo_size
        self.blocks = -(-length // plan.block)
        flipped = plan.reverse != backwards
        self.visit = (lambda i: self.blocks - 1 - i) if flipped else (lambda i: i)
        self.grid = (arrays.tail.shape[0], arrays.w.shape[1], self.blocks)

    @property
    def halo_size(self) -> int:
        return ROWS if self.arrays.x.ndim == 4 else 2 * ROWS

    def beside(self, i: jax.Array) -> jax.Array:
        """Where, in units of the halo's size, the halo of a visited block is; anywhere for the first in the walk."""
        per_block = self.plan.block // self.halo_size
        block = self.visit(i)
        unit = (block + 1) * per_block if self.plan.reverse else block * per_block - 1
        return jnp.clip(unit, 0, self.units - 1)

    def inputs(self) -> Blocks:
        a = self.arrays
        found: Blocks = {"x": (a.x, self.rows(a.x)), "w": (a.w, self.weights()), "bias": (a.bias, self.per_channel())}
        found["tail"] = (a.tail, self.tail())
        if a.flags is not None:
            spec = pl.BlockSpec((None, self.plan.block, a.flags.shape[2]), lambda b, tile, i: (b, self.visit(i), 0))
            found["flags"] = (a.flags, spec)
        return found

    def halo(self) -> Blocks:
        a = self.arrays
        spec = rows_spec(a.x.dtype, self.halo_size, self.plan.groups, lambda b, tile, i: (b, self.beside(i), tile))
        found: Blocks = {"halo": (a.x, spec)}
        if a.flags is not None:
            shape = (None, self.halo_size, a.flags.shape[2])
            found["halo_flags"] = (a.flags, pl.BlockSpec(shape, lambda b, tile, i: (b, self.beside(i), 0)))
        return found

    def rows(self, value: jax.Array) -> pl.BlockSpec:
        return rows_spec(value.dtype, self.plan.block, self.plan.groups, lambda b, tile, i: (b, self.visit(i), tile))

    def weights(self) -> pl.BlockSpec:
        return pl.BlockSpec((self.plan.taps, None, self.plan.groups, LANES), lambda b, tile, i: (0, tile, 0, 0))

    def per_channel(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.plan.groups, LANES), lambda b, tile, i: (tile, 0, 0))

    def tail(self, count: int | None = None) -> pl.BlockSpec:
        shape = (None, count or self.plan.taps - 1, None, self.plan.groups, LANES)
        return pl.BlockSpec(shape, lambda b, tile, i: (b, 0, tile, 0, 0))

    def call(self, kernel: Any, inputs: Blocks, outputs: Blocks, scratch: dict[str, Any]) -> dict[str, jax.Array]:
        vmem = tiles(device_kind(), self.plan.block).vmem
        name = f"causal_conv1d_{kernel.__name__}"
        return launch(kernel, self.plan, self.grid, inputs, outputs, scratch, vmem=vmem, name=name)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(plan: Plan, arrays: _Arrays) -> jax.Array:
    frame = _Frame(plan, arrays, backwards=False)
    past = pltpu.VMEM((plan.taps - 1, plan.groups, LANES), jnp.float32)
    return frame.call(forward, frame.inputs(), {"y": (arrays.x, frame.rows(arrays.x))}, {"past": past})["y"]


def _convolve_forward(plan: Plan, arrays: _Arrays) -> tuple[jax.Array, _Arrays]:
    return _convolve(plan, arrays), arrays


def _convolve_backward(plan: Plan, arrays: _Arrays, dy: jax.Array) -> tuple[_Arrays]:
    frame = _Frame(plan, arrays, backwards=True)
    b, _, *rest = arrays.tail.shape
    inputs = frame.inputs() | frame.halo() | {"dy": (dy, frame.rows(dy))}
    outputs: Blocks = {
        "dx": (arrays.x, frame.rows(arrays.x)),
        "dtail": (arrays.tail, frame.tail()),
        "dw": (jax.ShapeDtypeStruct((b, plan.taps, *rest), jnp.float32), frame.tail(plan.taps)),
        "dbias": (jax.ShapeDtypeStruct((b, 1, *rest), jnp.float32), frame.tail(1)),
    }
    found = frame.call(backward, inputs, outputs, {})
    gradients = _Arrays(
        x=found["dx"],
        w=jnp.sum(found["dw"], axis=0),
        bias=jnp.sum(found["dbias"], axis=(0, 1)),
        tail=found["dtail"],
        flags=None if arrays.flags is None else jnp.zeros_like(arrays.flags),
    )
    return (gradients,)


_convolve.defvjp(_convolve_forward, _convolve_backward)
