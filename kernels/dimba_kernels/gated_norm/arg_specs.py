"""Named shapes of `gated_rms_norm`, shared by tests and benchmarks, and random arguments for them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Shape:
    r: int
    b: int
    l: int
    i: int


SHAPES = {
    "tiny": Shape(r=2, b=2, l=5, i=24),
    "small": Shape(r=2, b=16, l=1024, i=1920),  # the two directions of DiffuMamba's 240M size
    "long": Shape(r=1, b=8, l=2048, i=3840),
}


def arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """y and z in `dtype`; scale in float32."""
    rng = np.random.default_rng(seed)
    r, b, l, i = shape.r, shape.b, shape.l, shape.i
    arrays = {
        "y": rng.standard_normal((r, b, l, i), np.float32).astype(dtype),
        "z": (2 * rng.standard_normal((b, l, r * i), np.float32)).astype(dtype),
        "scale": 1 + rng.standard_normal((r, i), np.float32) / 4,
    }
    return {name: jnp.asarray(value) for name, value in arrays.items()}
