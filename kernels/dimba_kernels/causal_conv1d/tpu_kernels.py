"""The kernels of `causal_conv1d` on TPU.

A grid step is one block of positions of one tile of up to 8 x 128 channels, one vector register a position, so that
a shift in time is another register and costs nothing. "Before" is in walking order, the direction of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from dimba_kernels.tpu_layout import LANES, ROWS, unrolled
from dimba_kernels.tpu_walk import Walk, named, sigmoid, where


@dataclass(frozen=True)
class Plan:
    """What is fixed when a kernel is built.

    Attributes:
        block: positions of a block. groups: of 128 channels in a tile. taps: k.
        segmented: the flags have k columns, the m-th from 1 on is 0 where the m-th position before does not count.
        silu, reverse: as in the operation.
    """

    block: int
    groups: int
    taps: int
    segmented: bool
    silu: bool
    reverse: bool


class Window(Walk):
    """A block of x, its weights w (k, groups, 128) and bias (groups, 128), and flags whose column 0 is the mask."""

    def __init__(self, at: SimpleNamespace, plan: Plan) -> None:
        super().__init__(at, plan.block, plan.groups, plan.reverse)
        self.plan = plan
        self.before = plan.taps - 1

    def counts(self, s: int) -> jax.Array | None:
        return None if self.at.flags is None else self.flag(0, s) > 0.5

    def inputs(self, group: jax.Array) -> list[jax.Array]:
        """x of a natural group in walking order."""
        return [where(self.counts(s), self.load("x", group, s)) for s in self.order]

    def linked(self, m: int, s: int, value: jax.Array) -> jax.Array:
        """The value, or zero where position s and the m-th before it are of different segments."""
        return value * self.flag(m, s) if m and self.plan.segmented else value

    def weight(self, m: int) -> jax.Array:
        """Of the m-th position before."""
        return self.at.w[self.before - m]

    def sums(self, window: list[jax.Array]) -> list[jax.Array]:
        """The convolution at the 8 positions of a group whose flags were read; window: k-1 inputs before, then 8."""
        found = []
        for j, s in enumerate(self.order):
            total = self.at.bias[...]
            for m in range(self.plan.taps):
                total = total + self.weight(m) * self.linked(m, s, window[self.before + j - m])
            found.append(total)
        return found


def forward(*refs: Any, names: tuple[str, ...], plan: Plan) -> None:
    """y of one tile. Scratch: past (k-1, groups, 128), the inputs before the block."""
    at = named(refs, names, "flags")
    walk = Window(at, plan)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        at.past[...] = at.tail[...]

    walk.widen("x")

    def step(i: jax.Array, past: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        group = walk.natural(i)
        walk.read_flags(group)
        window = [*past, *walk.inputs(group)]
        for s, total in zip(walk.order, walk.sums(window), strict=True):
            y = total * sigmoid(total) if plan.silu else total
            walk.store("y", group, s, where(walk.counts(s), y))
        return tuple(window[len(walk.order) :])

    past = tuple(at.past[m] for m in range(walk.before))
    past = jax.lax.fori_loop(0, walk.count, step, past, unroll=unrolled(walk.count))
    for m in range(walk.before):
        at.past[m] = past[m]
    walk.narrow("y")


def backward(*refs: Any, names: tuple[str, ...], plan: Plan) -> None:
    """Gradients of one tile, its blocks visited against the walking order.

    Each sum's gradient is added to those of the k inputs it saw; the last k-1 of them wait in the output dtail, which
    stays in VMEM until the tile's last block, as dw (k, groups, 128) and dbias (groups, 128) do. The k-1 inputs
    before the block come from `halo`, 8 positions of the block before (16 of those of 16 bits).
    """
    at = named(refs, names, "flags", "halo_flags")
    walk = Window(at, plan)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for total in (at.dtail, at.dw, at.dbias):
            total[...] = jnp.zeros_like(total)

    walk.widen("x", "dy", "halo")
    edge = _before_block(walk, at)

    def step(i: jax.Array, carry: tuple[tuple[jax.Array, ...], ...]) -> tuple[tuple[jax.Array, ...], ...]:
        waiting, totals = list(carry[0]), list(carry[1])
        i = walk.count - 1 - i
        walk.read_flags(walk.natural(jnp.maximum(i - 1, 0)))
        inputs = walk.inputs(walk.natural(jnp.maximum(i - 1, 0)))[len(walk.order) - walk.before :]
        past = [jnp.where(i == 0, first, value) for first, value in zip(edge, inputs, strict=True)]
        group = walk.natural(i)
        walk.read_flags(group)
        window = past + walk.inputs(group)
        sums = walk.sums(window)
        for j in reversed(range(len(walk.order))):
            s = walk.order[j]
            change = where(walk.counts(s), walk.load("dy", group, s))
            if plan.silu:
                gate = sigmoid(sums[j])
                change = change * (gate * (1.0 + sums[j] * (1.0 - gate)))
            waiting.insert(0, walk.zero)
            for m in range(plan.taps):
                linked = walk.linked(m, s, change)
                waiting[walk.before - m] = waiting[walk.before - m] + walk.weight(m) * linked
                totals[walk.before - m] = totals[walk.before - m] + linked * window[walk.before + j - m]
            totals[-1] = totals[-1] + change
            walk.store("dx", group, s, where(walk.counts(s), waiting.pop()))
        return tuple(waiting), tuple(totals)

    waiting = tuple(at.dtail[m] for m in range(walk.before))
    totals = (walk.zero,) * (plan.taps + 1)
    waiting, totals = jax.lax.fori_loop(0, walk.count, step, (waiting, totals), unroll=unrolled(walk.count))
    for m in range(walk.before):
        at.dtail[m] = waiting[m]
    for m in range(plan.taps):
        at.dw[m] += totals[m]
    at.dbias[...] += totals[-1]
    walk.narrow("dx")


def _before_block(walk: Window, at: SimpleNamespace) -> list[jax.Array]:
    """The k-1 inputs before the block: of the block before, or for the first one the tail."""
    last = 0 if walk.reverse else walk.rows("halo").shape[0] - 1
    first = pl.program_id(2) == pl.num_programs(2) - 1
    found = []
    if at.halo_flags is not None:
        valid = at.halo_flags[last * ROWS : (last + 1) * ROWS, 0:1]
        at.flag_rows[0] = jnp.broadcast_to(valid, (ROWS, LANES))
    for m, s in enumerate(walk.order[len(walk.order) - walk.before :]):
        found.append(jnp.where(first, at.tail[m], where(walk.counts(s), walk.load("halo", last, s))))
    return found
