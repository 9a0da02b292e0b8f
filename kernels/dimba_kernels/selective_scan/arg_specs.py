"""Named shapes of `selective_scan`, shared by tests and benchmarks, and random arguments for them."""

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
    n: int


SHAPES = {
    "tiny": Shape(b=2, l=13, d=6, n=4),
    "quickstart": Shape(b=64, l=24, d=128, n=8),
    "paraphrase": Shape(b=512, l=64, d=1024, n=16),
    "paraphrase_small": Shape(b=64, l=64, d=1024, n=16),
    "long": Shape(b=8, l=2048, d=1536, n=16),
    "very_long": Shape(b=1, l=32768, d=3840, n=16),
}


def arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """u, B, C, z in `dtype`; dt, A, D, h0 in float32, drawn as a trained layer has them."""
    rng = np.random.default_rng(seed)
    b, l, d, n = shape.b, shape.l, shape.d, shape.n

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size=size, dtype=np.float32)

    # numpy up to here: drawn on any device alike, and nothing to compile
    arrays = {
        "u": normal(b, l, d).astype(dtype),
        "dt": np.log1p(np.exp(normal(b, l, d) - 1)),
        "A": -np.exp(normal(d, n)),
        "B": normal(b, l, n).astype(dtype),
        "C": normal(b, l, n).astype(dtype),
        "D": normal(d),
        "z": normal(b, l, d).astype(dtype),
        "h0": normal(b, d, n),
    }
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def raw_arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """Arguments for dt_softplus=True: dt in `dtype`, as a projection gives it, and dt_bias in float32."""
    rng = np.random.default_rng(seed + 1)
    dt = rng.standard_normal(size=(shape.b, shape.l, shape.d), dtype=np.float32).astype(dtype)
    bias = rng.uniform(-3, 0, size=shape.d).astype(np.float32)
    return arguments(shape, dtype, seed) | {"dt": jnp.asarray(dt), "dt_bias": jnp.asarray(bias)}
