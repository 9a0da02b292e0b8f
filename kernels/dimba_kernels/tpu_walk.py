"""What the TPU kernels share that walk over positions: a block's arrays by name, read one position a register."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dimba_kernels.tpu_call import tpu_call
from dimba_kernels.tpu_layout import LANES, ROWS, narrow, rows_scratch, widen

Blocks = dict[str, tuple[Any, pl.BlockSpec]]
"""Arrays of a kernel, or for its outputs their shapes, and how they are cut."""


def launch(
    kernel: Callable[..., None],
    plan: Any,
    grid: tuple[int, int, int],
    inputs: Blocks,
    outputs: Blocks,
    scratch: dict[str, Any],
    *,
    vmem: int,
    name: str,
) -> dict[str, jax.Array]:
    """Run `kernel(*refs, names=, plan=)` over (batch, tile of channels, block of positions), the blocks in order.

    Blocks of 16 bits get a scratch `<name>_rows` to be widened in, flags one to be spread in.

    Args:
        vmem: bytes that the kernel may take.

    Returns: the outputs by name.
    """
    for array, (value, spec) in (inputs | outputs).items():
        if value.dtype != jnp.float32:
            positions, lanes = (size for size in spec.block_shape or () if isinstance(size, int))
            scratch[f"{array}_rows"] = rows_scratch(positions, lanes // LANES)
    if "flags" in inputs:
        scratch["flag_rows"] = pltpu.VMEM((inputs["flags"][0].shape[2], ROWS, LANES), jnp.float32)
    found = tpu_call(
        partial(kernel, names=(*inputs, *outputs, *scratch), plan=plan),
        grid=grid,
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in outputs.values()],
        out_shape=[jax.ShapeDtypeStruct(value.shape, value.dtype) for value, _ in outputs.values()],
        scratch_shapes=list(scratch.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem
        ),
        name=name,
    )(*(value for value, _ in inputs.values()))
    return dict(zip(outputs, found, strict=True))


def named(refs: tuple[Any, ...], names: tuple[str, ...], *optional: str) -> SimpleNamespace:
    """A kernel's arrays by name; None for the optional ones that are not among them."""
    return SimpleNamespace(**(dict.fromkeys(optional) | dict(zip(names, refs, strict=True))))


def where(condition: jax.Array | None, value: jax.Array) -> jax.Array:
    """The value, or zero (also for NaN) where the condition does not hold."""
    return value if condition is None else jnp.where(condition, value, 0.0)


def sigmoid(x: jax.Array) -> jax.Array:
    """Exact to rounding, and made of what Mosaic lowers."""
    return 1.0 / (1.0 + jnp.exp(-x))


class Walk:
    """The groups of 8 positions of a block, in natural order or in walking order, that of the scan.

    Args:
        at: arrays: blocks in rows, or of 16 bits with a scratch `<name>_rows` beside them; flags (block, columns) or
            None, with a scratch flag_rows (columns, 8, 128).
        block: positions. groups: of 128 channels. reverse: the direction of the scan.
    """

    def __init__(self, at: SimpleNamespace, block: int, groups: int, reverse: bool) -> None:
        self.at, self.groups, self.reverse = at, groups, reverse
        self.count = block // ROWS
        self.order = tuple(reversed(range(ROWS))) if reverse else tuple(range(ROWS))
        self.zero = jnp.zeros((groups, LANES), jnp.float32)

    def rows(self, name: str) -> Any:
        """The float32 rows of a block: itself, or its widened copy."""
        wide = f"{name}_rows"
        return getattr(self.at, wide if hasattr(self.at, wide) else name)

    def widen(self, *names: str) -> None:
        for name in names:
            if hasattr(self.at, f"{name}_rows"):
                widen(getattr(self.at, name), self.rows(name))

    def narrow(self, *names: str) -> None:
        for name in names:
            if hasattr(self.at, f"{name}_rows"):
                narrow(self.rows(name), getattr(self.at, name))

    def natural(self, i: jax.Array) -> jax.Array:
        """The i-th group in walking order, in natural order."""
        return self.count - 1 - i if self.reverse else i

    def positions(self, i: jax.Array) -> Any:
        """The slice of natural group i."""
        return pl.ds(pl.multiple_of(i * ROWS, ROWS), ROWS)

    def load(self, name: str, i: jax.Array | int, s: int) -> jax.Array:
        """Position s of natural group i: (groups, 128)."""
        return self.rows(name)[i, pl.ds(s, self.groups, stride=ROWS), :]

    def store(self, name: str, i: jax.Array, s: int, value: jax.Array) -> None:
        self.rows(name)[i, pl.ds(s, self.groups, stride=ROWS), :] = value

    def row(self, buffer: Any, k: int, s: int) -> jax.Array:
        """Row s of the k-th (8, 128) of a buffer, repeated: one load."""
        return jnp.broadcast_to(buffer[k, s : s + 1, :], (self.groups, LANES))

    def read_flags(self, i: jax.Array) -> None:
        """Spread the flags of natural group i over the lanes, for `flag`."""
        if self.at.flags is not None:
            values = self.at.flags[self.positions(i), :]
            for k in range(values.shape[1]):
                self.at.flag_rows[k] = jnp.broadcast_to(values[:, k : k + 1], (ROWS, LANES))

    def flag(self, k: int, s: int) -> jax.Array:
        """Column k of the flags at position s, in every channel: (groups, 128)."""
        return self.row(self.at.flag_rows, k, s)
