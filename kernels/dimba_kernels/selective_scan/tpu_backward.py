"""The backward kernel of `selective_scan` on TPU.

The blocks are visited against the walking order, each beginning with the state that the forward pass saved for it.
Inside a block the states are computed once more, all of them into VMEM, and then the gradient walks back over them.
With g the gradient of the state behind position t, everything before the decay:

    g += C dy;  dC = <h_t, dy>;  dB = <g, dt u>;  d(dt u) = <B, g>
    g *= exp(dt A), the gradient of h_{t-1};  w = g h_{t-1};  ddt += <A, w>;  dA += dt w

<,> sums over channels for dB and dC, over states otherwise. A product that is to be summed over channels goes to
VMEM as it is, 8 positions of them, and comes back with positions as rows: the sum over groups is then plain adds.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from dimba_kernels.selective_scan.tpu_kernels import Plan, Scan
from dimba_kernels.tpu_layout import LANES, ROWS
from dimba_kernels.tpu_walk import named, sigmoid, where

_LN2 = 0.6931471805599453
APART = ROWS + 1
"""Rows between positions among the products. A load of every 8th row is two and their union; of every 9th it is one:
15.7 for 17.1 cycles a token and 128 channels of the whole kernel on v5e, n 16 (libtpu 0.0.52)."""


def backward(*refs: Any, names: tuple[str, ...], plan: Plan) -> None:
    """Gradients of one tile.

    The outputs dh0, dA (states, groups, 128), dD and dbias (groups, 128) stay in VMEM until the tile's last block;
    dh0 is g. dB and dC (block, 128) are this tile's share. Scratch: states (block + 1, states, groups, 128),
    products_B, products_C (chunk, 72, 128), dy_rows.
    """
    at = named(refs, names, "flags", "z")
    walk = Scan(at, plan)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        at.dh0[...] = at.dh_last[...]
        for total in (at.dA, at.dD, at.dbias):
            total[...] = jnp.zeros_like(total)

    walk.widen("u", "dt", "z", "dout")
    at.states[0] = at.entries[...]
    walk.spread(walk.natural(jnp.int32(0)), 0)
    jax.lax.fori_loop(0, walk.count, lambda i, _: _recompute_group(walk, at, i), None)
    walk.spread(walk.natural(jnp.int32(walk.count - 1)), 0)
    jax.lax.fori_loop(0, walk.count, lambda i, _: _backward_group(walk, at, walk.count - 1 - i), None)
    walk.narrow("du", "ddt", "dz")


def _recompute_group(walk: Scan, at: SimpleNamespace, i: jax.Array) -> None:
    """The states of walking group i into `at.states`, dy and dz."""
    group = walk.natural(i)
    walk.read_flags(group)
    dt = {s: walk.steps(group, s) for s in walk.order}
    u = {s: where(walk.counts(s), walk.load("u", group, s)) for s in walk.order}
    added = {s: dt[s] * u[s] for s in walk.order}
    keep = {s: walk.keep(s) for s in walk.order}
    y = {s: at.D[...] * u[s] for s in walk.order}
    for chunk in walk.each_chunk(i, 1):
        for m in range(walk.plan.chunk):
            n = chunk * walk.plan.chunk + m
            A = at.A[n]
            state = at.states[i * ROWS, n]
            for j, s in enumerate(walk.order):
                state = walk.decay(dt[s], A, keep[s]) * state + added[s] * walk.scalar("B", chunk, m, s)
                at.states[i * ROWS + j + 1, n] = state
                if at.z is not None:
                    y[s] = y[s] + walk.scalar("C", chunk, m, s) * state
    for s in walk.order:
        dy = where(walk.counts(s), walk.load("dout", group, s))
        if at.z is not None:
            z = where(walk.counts(s), walk.load("z", group, s))
            gate = sigmoid(z)
            walk.store("dz", group, s, dy * y[s] * gate * (1.0 + z * (1.0 - gate)))
            dy = dy * (z * gate)
        walk.store("dy", group, s, dy)


def _backward_group(walk: Scan, at: SimpleNamespace, i: jax.Array) -> None:
    plan = walk.plan
    group = walk.natural(i)
    walk.read_flags(group)
    dt = {s: walk.steps(group, s) for s in walk.order}
    added = {s: dt[s] * where(walk.counts(s), walk.load("u", group, s)) for s in walk.order}
    dy = {s: walk.load("dy", group, s) for s in walk.order}
    keep = {s: walk.keep(s) for s in walk.order}
    dadded, ddt = dict.fromkeys(walk.order, walk.zero), dict.fromkeys(walk.order, walk.zero)
    columns = {name: jnp.zeros((ROWS, LANES), jnp.float32) for name in ("B", "C")}
    lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)
    for chunk in walk.each_chunk(i, -1):
        for m in range(plan.chunk):
            n = chunk * plan.chunk + m
            g, A = at.dh0[n], at.A[n]
            dA = at.dA[n]
            state = at.states[i * ROWS + ROWS, n]
            for j in reversed(range(ROWS)):
                s = walk.order[j]
                g = g + walk.scalar("C", chunk, m, s) * dy[s]
                here = pl.ds(s * APART, plan.groups)
                at.products_C[m, here, :] = state * dy[s]
                at.products_B[m, here, :] = g * added[s]
                dadded[s] = dadded[s] + g * walk.scalar("B", chunk, m, s)
                g = g * walk.decay(dt[s], A, keep[s])
                state = at.states[i * ROWS + j, n]
                w = g * state
                ddt[s] = ddt[s] + w * A
                dA = dA + w * dt[s]
            at.dh0[n] = g
            at.dA[n] = dA
            for name, products in (("B", at.products_B), ("C", at.products_C)):
                over_groups = sum(products[m, pl.ds(k, ROWS, stride=APART), :] for k in range(plan.groups))
                total = jnp.sum(over_groups, axis=1, keepdims=True)
                columns[name] = jnp.where(lane == n, total, columns[name])
    at.dB[walk.positions(group), :] = columns["B"]
    at.dC[walk.positions(group), :] = columns["C"]
    for s in walk.order:
        counts = walk.counts(s)
        u = where(counts, walk.load("u", group, s))
        walk.store("du", group, s, dy[s] * at.D[...] + dadded[s] * dt[s])
        change = dadded[s] * u + ddt[s] * _LN2
        if plan.softplus:
            change = change * sigmoid(walk.load("dt", group, s) + at.bias[...])
        change = where(counts, change)
        walk.store("ddt", group, s, change)
        at.dbias[...] += change
        at.dD[...] += dy[s] * u
