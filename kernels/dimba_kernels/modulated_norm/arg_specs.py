"""Named shapes of `modulated_rms_norm`, shared by tests and the lowering checks, and random arguments for them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Shape:
    b: int
    l: int
    d: int
    rows: int | None = None  # of scale, shift and gate: b by default
    branch: bool = True


SHAPES = {
    "tiny": Shape(b=2, l=5, d=24),
    "small": Shape(b=16, l=1024, d=960),  # DiffuMamba's 240M size
    "first": Shape(b=16, l=1024, d=960, branch=False),  # the norm before a block's first branch
    "large": Shape(b=16, l=1024, d=1920),
    "long": Shape(b=1, l=8192, d=1920, rows=1),
}


def arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """The branch in `dtype`, all else in float32."""
    rng = np.random.default_rng(seed)
    modulation = (shape.b if shape.rows is None else shape.rows, 1, shape.d)
    rows = (shape.b, shape.l, shape.d)
    arrays = {
        "h": 3 * rng.standard_normal(rows, np.float32),
        "weight": 1 + rng.standard_normal(shape.d, np.float32) / 4,
        "scale": rng.standard_normal(modulation, np.float32) / 2,
        "shift": rng.standard_normal(modulation, np.float32),
    }
    if shape.branch:
        arrays["branch"] = rng.standard_normal(rows, np.float32).astype(dtype)
        arrays["gate"] = rng.standard_normal(modulation, np.float32)
    return {name: jnp.asarray(value) for name, value in arrays.items()}
