"""Scratch memory for operands of matmuls."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu


class Operand:
    """A matrix in VMEM, indexed like one. In bfloat16 it lies there as int32, two rows a word.

    Mosaic keeps bfloat16 arrays in tiles of 8 rows on v5e: half a register, to be put together for each matmul. So kept
    it is loaded and stored in whole registers.
    """

    def __init__(self, ref: Any, dtype: str) -> None:
        self._ref, self._dtype = ref, jnp.dtype(dtype)

    def __getitem__(self, index: Any) -> jax.Array:
        value = self._ref[self._words(index)]
        return pltpu.bitcast(value, self._dtype) if self._packed else value

    def __setitem__(self, index: Any, value: jax.Array) -> None:
        value = value.astype(self._dtype)
        self._ref[self._words(index)] = pltpu.bitcast(value, jnp.int32) if self._packed else value

    @property
    def _packed(self) -> bool:
        return self._dtype.itemsize == 2

    def _words(self, index: Any) -> Any:
        """Rows are a slice with constant bounds, or all."""
        if not self._packed or index is ...:
            return index
        rows, *lanes = index if isinstance(index, tuple) else (index,)
        bounds = (None if bound is None else bound // 2 for bound in (rows.start, rows.stop))
        return (slice(*bounds), *lanes)


class OperandShape(NamedTuple):
    """Of an `Operand` in a kernel's scratch."""

    rows: int
    lanes: int
    dtype: str

    @property
    def memory(self) -> Any:
        if self.dtype == "float32":
            return pltpu.VMEM((self.rows, self.lanes), jnp.dtype(self.dtype))
        return pltpu.VMEM((self.rows // 2, self.lanes), jnp.int32)
