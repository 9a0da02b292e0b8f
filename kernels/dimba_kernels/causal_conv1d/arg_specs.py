"""Named shapes of `causal_conv1d`, shared by tests and benchmarks, and random arguments for them."""

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
    k: int = 4


SHAPES = {
    "tiny": Shape(b=2, l=13, d=6),
    "quickstart": Shape(b=64, l=24, d=160),
    "paraphrase": Shape(b=512, l=64, d=1152),
    "long": Shape(b=8, l=2048, d=4096),
}


def arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """x and tail in `dtype`; w and bias in float32."""
    rng = np.random.default_rng(seed)

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size=size, dtype=np.float32)

    # numpy up to here: drawn on any device alike, and nothing to compile
    arrays = {
        "x": normal(shape.b, shape.l, shape.d).astype(dtype),
        "w": normal(shape.d, shape.k),
        "bias": normal(shape.d),
        "tail": normal(shape.b, shape.k - 1, shape.d).astype(dtype),
    }
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def pair_arguments(shape: Shape, dtype: jnp.dtype | type = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """Of `causal_conv1d_pair`."""
    one, other = arguments(shape, dtype, seed), arguments(shape, dtype, seed + 1)
    weights = {name: jnp.stack([one[name], other[name]]) for name in ("w", "bias")}
    return one | weights | {f"{name}_back": other[name] for name in ("x", "tail")}
