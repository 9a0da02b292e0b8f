"""The forward kernel of `selective_scan` on TPU, and what it shares with the backward one.

A grid step is one block of positions of one tile of up to 8 x 128 channels, one vector register a position. The
state of the tile, n registers, stays in VMEM from block to block. B and C are scalars to a tile: 8 positions of
them are spread over the lanes at a time, one chunk of states ahead of their use, and each is then a load that repeats
one row. Two buffers take turns, which also keeps the compiler from running ahead until registers spill.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from dimba_kernels.tpu_layout import LANES, ROWS
from dimba_kernels.tpu_walk import Walk, named, sigmoid, where


@dataclass(frozen=True)
class Plan:
    """What is fixed when a kernel is built.

    Attributes:
        block, states, chunk: see `tpu_tiles.Tiles`.
        groups: of 128 channels in a tile. ragged: how many there are in all, where the last tile has fewer; else None.
        softplus: dt = softplus(dt + bias).
        segmented: the flags have a second column, 0 where the state does not come in from the position before.
        reverse: the direction of the scan.
    """

    block: int
    states: int
    chunk: int
    groups: int
    ragged: int | None
    softplus: bool
    segmented: bool
    reverse: bool


class Scan(Walk):
    """A block of the scan.

    Beside the blocks `at` holds B and C (block, states), A (states, groups, 128), D and bias (groups, 128), and the
    scratch spread0 and spread1 (2 * chunk, 8, 128).
    """

    def __init__(self, at: SimpleNamespace, plan: Plan) -> None:
        super().__init__(at, plan.block, plan.groups, plan.reverse)
        self.plan = plan
        self.chunks = plan.states // plan.chunk

    def spread(self, i: jax.Array, chunk: int) -> None:
        """Spread B and C of natural group i for the states of a chunk over the lanes, into that chunk's buffer."""
        buffer = (self.at.spread0, self.at.spread1)[chunk % 2]
        for k, name in enumerate(("B", "C")):
            values = getattr(self.at, name)[self.positions(i), :]
            for m in range(self.plan.chunk):
                n = chunk * self.plan.chunk + m
                buffer[k * self.plan.chunk + m] = jnp.broadcast_to(values[:, n : n + 1], (ROWS, LANES))

    def each_chunk(self, i: jax.Array, step: int) -> Iterator[int]:
        """Chunks of the walking group i, with the next one being spread while one is worked on.

        step: 1 when groups are visited in walking order, -1 when in the opposite one.
        """
        following = self.natural(jnp.clip(i + step, 0, self.count - 1))
        for chunk in range(self.chunks):
            last = chunk == self.chunks - 1
            self.spread(following if last else self.natural(i), 0 if last else chunk + 1)
            yield chunk

    def scalar(self, name: str, chunk: int, m: int, s: int) -> jax.Array:
        """B or C of position s and of the m-th state of a chunk, in every channel: (groups, 128)."""
        row = m + (self.plan.chunk if name == "C" else 0)
        return self.row((self.at.spread0, self.at.spread1)[chunk % 2], row, s)

    def counts(self, s: int) -> jax.Array | None:
        """(groups, 128) bool: what is neither masked nor behind the end of an array; None for all."""
        result = None
        if self.plan.ragged is not None:
            shape = (self.plan.groups, LANES)
            group = pl.program_id(1) * self.plan.groups + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
            result = group < self.plan.ragged
        if self.at.flags is not None:
            valid = self.flag(0, s) > 0.5
            result = valid if result is None else result & valid
        return result

    def keep(self, s: int) -> jax.Array | None:
        """0 where the state starts anew, else 1; None for 1."""
        return self.flag(1, s) if self.plan.segmented else None

    def steps(self, i: jax.Array, s: int) -> jax.Array:
        """dt as the recurrence takes it."""
        dt = self.load("dt", i, s)
        if self.plan.softplus:
            raw = dt + self.at.bias[...]
            dt = jnp.maximum(raw, 0) + jnp.log1p(jnp.exp(-jnp.abs(raw)))
        return where(self.counts(s), dt)

    def decay(self, dt: jax.Array, A: jax.Array, keep: jax.Array | None) -> jax.Array:
        """exp(dt A) of an A that was divided by log 2: the exponential of the machine is that of base 2."""
        decay = jnp.exp2(dt * A)
        return decay if keep is None else decay * keep


def forward(*refs: Any, names: tuple[str, ...], plan: Plan) -> None:
    """y and h_last of one tile; in `entries`, if there is one, the state with which each block begins.

    The output h_last (states, groups, 128) is the state itself: it stays in VMEM until the tile's last block.
    """
    at = named(refs, names, "flags", "z", "entries")
    walk = Scan(at, plan)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        at.h_last[...] = at.h0[...]

    if at.entries is not None:
        at.entries[...] = at.h_last[...]
    walk.widen("u", "dt", "z")
    walk.spread(walk.natural(jnp.int32(0)), 0)
    jax.lax.fori_loop(0, walk.count, lambda i, _: _forward_group(walk, at, i), None)
    walk.narrow("y")


def _forward_group(walk: Scan, at: SimpleNamespace, i: jax.Array) -> None:
    group = walk.natural(i)
    walk.read_flags(group)
    dt = {s: walk.steps(group, s) for s in walk.order}
    added = {s: dt[s] * where(walk.counts(s), walk.load("u", group, s)) for s in walk.order}
    keep = {s: walk.keep(s) for s in walk.order}
    y = dict.fromkeys(walk.order, walk.zero)
    for chunk in walk.each_chunk(i, 1):
        for m in range(walk.plan.chunk):
            n = chunk * walk.plan.chunk + m
            state, A = at.h_last[n], at.A[n]
            for s in walk.order:
                state = walk.decay(dt[s], A, keep[s]) * state + added[s] * walk.scalar("B", chunk, m, s)
                y[s] = y[s] + walk.scalar("C", chunk, m, s) * state
            at.h_last[n] = state
    for s in walk.order:
        value = y[s] + at.D[...] * walk.load("u", group, s)
        if at.z is not None:
            z = walk.load("z", group, s)
            value = value * (z * sigmoid(z))
        walk.store("y", group, s, where(walk.counts(s), value))
