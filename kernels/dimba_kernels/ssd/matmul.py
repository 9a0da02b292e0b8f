"""A matmul in the dtype of its inputs with a float32 result, in the backward pass too."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def matmul(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.einsum` of two arrays of one dtype, accumulated and returned in float32 (float64 for float64).

    The plain derivative would multiply a float32 cotangent by a bfloat16 matrix, which is a float32 matmul: here the
    cotangent is rounded to the dtype of the inputs first. Every letter of an operand must be in the other or in the
    result.
    """
    return _matmul(spec, a, b)


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)

    def direct(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a, b, preferred_element_type=wide)

    def upcast(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a.astype(wide), b.astype(wide))

    if a.dtype == wide:
        return direct(a, b)
    # XLA's CPU backend refuses some bfloat16 products with a float32 result when it runs them.
    return jax.lax.platform_dependent(a, b, cpu=upcast, default=direct)


_matmul = jax.custom_vjp(_product, nondiff_argnums=(0,))


def _forward(spec: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(spec, a, b), (a, b)


def _backward(spec: str, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    left, right, result = spec.replace("->", ",").split(",")
    cotangent = cotangent.astype(a.dtype)
    into_a = matmul(f"{result},{right}->{left}", cotangent, b)
    into_b = matmul(f"{left},{result}->{right}", a, cotangent)
    return into_a.astype(a.dtype), into_b.astype(b.dtype)


_matmul.defvjp(_forward, _backward)
