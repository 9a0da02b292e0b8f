"""Named shapes of `ssd`, shared by tests and benchmarks, and random arguments for them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Shape:
    b: int
    l: int
    h: int
    p: int
    n: int
    g: int = 1


SHAPES = {
    "tiny": Shape(b=2, l=13, h=4, p=3, n=5),
    "quickstart": Shape(b=64, l=24, h=4, p=32, n=16),
    "paraphrase": Shape(b=512, l=64, h=16, p=64, n=64),
    "short_240m": Shape(b=16, l=1024, h=30, p=64, n=128),
    "long": Shape(b=8, l=2048, h=60, p=64, n=128),
    "very_long": Shape(b=1, l=32768, h=60, p=64, n=128),
}


def arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """x, B, C in `dtype`; dt, A, D, h0 in float32, drawn as a trained layer has them."""
    rng = np.random.default_rng(seed)
    b, l, h, p, n, g = shape.b, shape.l, shape.h, shape.p, shape.n, shape.g

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size=size, dtype=np.float32)

    # numpy up to here: drawn on any device alike, and nothing to compile
    arrays = {
        "x": normal(b, l, h, p).astype(dtype),
        "dt": np.log1p(np.exp(normal(b, l, h) - 1)),
        "A": -np.exp(normal(h)),
        "B": normal(b, l, g, n).astype(dtype),
        "C": normal(b, l, g, n).astype(dtype),
        "D": normal(h),
        "h0": normal(b, h, p, n),
    }
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def pair_arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """Arguments of `ssd_pair`: those of two scans, stacked."""
    forward, backward = arguments(shape, dtype, seed), arguments(shape, dtype, seed + 1)
    return {name: jnp.stack([forward[name], backward[name]]) for name in forward}
