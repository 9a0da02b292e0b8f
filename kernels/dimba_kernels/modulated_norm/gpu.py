"""Add and norm on a GPU: one Triton kernel forward, one backward, each reading its inputs once."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.modulated_norm import gpu_kernels
from dimba_kernels.triton_call import triton_call

_DTYPES = ("float32", "bfloat16", "float16")
_WIDEST = 8192  # features, which a program holds in registers
_TURNS = 4  # positions of a program of the forward pass, which share what modulates them
_PROGRAMS = 1056  # of the backward pass: 8 a multiprocessor (of 132), each with a share of the sums over positions

Pair = tuple[jax.Array, jax.Array]


class _Static(NamedTuple):
    dtype: jnp.dtype
    epsilon: float


def unsupported(
    h: jax.Array,
    weight: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    branch: jax.Array | None,
    gate: jax.Array | None,
    *,
    dtype: jnp.dtype,
    epsilon: float,
) -> str | None:
    """Why these arguments cannot run here, or None."""
    del weight, epsilon
    names = {"h": h.dtype.name, "dtype": dtype.name} | ({} if branch is None else {"branch": branch.dtype.name})
    for name, value in names.items():
        if value not in _DTYPES:
            return f"{name} is {value}, and the kernels take {', '.join(_DTYPES)}"
    for name, array in (("scale", scale), ("shift", shift), ("gate", gate)):
        if array is not None and array.shape[1] != 1:
            return f"{name} has a value for each of {array.shape[1]} positions, and the kernels take one for a row"
    if h.shape[2] > _WIDEST:
        return f"h has {h.shape[2]} features, and the kernels take up to {_WIDEST}"
    if 0 in h.shape:
        return f"h is empty: {h.shape}"
    if h.shape[0] > 65535:
        return f"{h.shape[0]} rows are more than one launch takes"
    return None


def modulated_rms_norm(
    h: jax.Array,
    weight: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    branch: jax.Array | None,
    gate: jax.Array | None,
    *,
    dtype: jnp.dtype,
    epsilon: float,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.modulated_rms_norm`."""
    nothing = jnp.zeros((1, 1, h.shape[2]))
    scale = nothing if scale is None else scale
    shift = nothing if shift is None else shift
    static = _Static(dtype, epsilon)
    if branch is None:
        return _norm(static, h, weight, scale, shift)
    return _add_norm(static, h, weight, scale, shift, branch, nothing + 1 if gate is None else gate)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(static: _Static, h: jax.Array, weight: jax.Array, scale: jax.Array, shift: jax.Array) -> Pair:
    (out,) = triton_call(
        gpu_kernels.norm_forward,
        [h, weight, scale, shift],
        [jax.ShapeDtypeStruct(h.shape, static.dtype)],
        **_forward_launch(static, h, SCALE_STEP=scale, SHIFT_STEP=shift),
    )
    return h, out


def _norm_forward(static: _Static, h: jax.Array, weight: jax.Array, scale: jax.Array, shift: jax.Array) -> Any:
    return _norm(static, h, weight, scale, shift), (h, weight, scale, shift)


def _norm_backward(static: _Static, kept: tuple[jax.Array, ...], cotangents: Pair) -> tuple[jax.Array, ...]:
    h, weight, scale, shift = kept
    launch, programs = _backward_launch(static, h, SCALE_STEP=scale)
    dh, partials = triton_call(
        gpu_kernels.norm_backward,
        [h, weight, scale, *cotangents],
        [
            jax.ShapeDtypeStruct(h.shape, h.dtype),
            jax.ShapeDtypeStruct((h.shape[0], programs, 2, h.shape[2]), jnp.float32),
        ],
        **launch,
    )
    products, sums = _summed(partials)
    return dh, *_of_modulation(products, sums, weight, scale, shift)


_norm.defvjp(_norm_forward, _norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _add_norm(
    static: _Static,
    h: jax.Array,
    weight: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    branch: jax.Array,
    gate: jax.Array,
) -> Pair:
    total, out = triton_call(
        gpu_kernels.add_norm_forward,
        [h, weight, scale, shift, branch, gate],
        [jax.ShapeDtypeStruct(h.shape, h.dtype), jax.ShapeDtypeStruct(h.shape, static.dtype)],
        **_forward_launch(static, h, SCALE_STEP=scale, SHIFT_STEP=shift, GATE_STEP=gate),
    )
    return total, out


def _add_norm_forward(static: _Static, h: jax.Array, *arrays: jax.Array) -> Any:
    results: Pair = _add_norm(static, h, *arrays)
    return results, (results[0], *arrays)


def _add_norm_backward(static: _Static, kept: tuple[jax.Array, ...], cotangents: Pair) -> tuple[jax.Array, ...]:
    total, weight, scale, shift, branch, gate = kept
    launch, programs = _backward_launch(static, total, SCALE_STEP=scale, GATE_STEP=gate)
    dh, dbranch, partials = triton_call(
        gpu_kernels.add_norm_backward,
        [total, weight, scale, branch, gate, *cotangents],
        [
            jax.ShapeDtypeStruct(total.shape, total.dtype),
            jax.ShapeDtypeStruct(branch.shape, branch.dtype),
            jax.ShapeDtypeStruct((total.shape[0], programs, 3, total.shape[2]), jnp.float32),
        ],
        **launch,
    )
    products, sums, dgate = _summed(partials)
    return dh, *_of_modulation(products, sums, weight, scale, shift), dbranch, _like(dgate, gate)


_add_norm.defvjp(_add_norm_forward, _add_norm_backward)


def _forward_launch(static: _Static, h: jax.Array, **modulations: jax.Array) -> dict[str, Any]:
    b, l, _ = h.shape
    constants, warps = _constants(static, h, modulations)
    turns = min(_TURNS, l)
    return dict(grid=(-(-l // turns), b), constants=constants | {"TURNS": turns}, warps=warps)


def _backward_launch(static: _Static, h: jax.Array, **modulations: jax.Array) -> tuple[dict[str, Any], int]:
    b, l, _ = h.shape
    constants, warps = _constants(static, h, modulations)
    programs = min(l, max(1, _PROGRAMS // b))
    return dict(grid=(programs, b), constants=constants | {"PROGRAMS": programs}, warps=warps), programs


def _constants(static: _Static, h: jax.Array, modulations: dict[str, jax.Array]) -> tuple[dict[str, Any], int]:
    """What a kernel is compiled for, and the warps that hold a position."""
    _, l, d = h.shape
    block = 1 << (d - 1).bit_length()
    steps = {name: 0 if array.shape[0] == 1 else d for name, array in modulations.items()}
    return dict(LENGTH=l, WIDTH=d, BLOCK=block, EPSILON=static.epsilon) | steps, min(8, max(1, block // 256))


def _summed(partials: jax.Array) -> list[jax.Array]:
    """(b, programs, n, d) -> n sums (b, 1, d)."""
    return jnp.split(jnp.sum(partials, axis=1), partials.shape[2], axis=1)


def _of_modulation(
    products: jax.Array, sums: jax.Array, weight: jax.Array, scale: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of weight, scale and shift from sums over positions, (b, 1, d), of dout * normed and of dout."""
    dweight = jnp.sum(products * (1 + scale.astype(jnp.float32)), axis=(0, 1)).astype(weight.dtype)
    return dweight, _like(products * weight.astype(jnp.float32), scale), _like(sums, shift)


def _like(gradient: jax.Array, modulation: jax.Array) -> jax.Array:
    """Summed over the rows that share what modulates them."""
    shared = modulation.shape[0] == 1
    return (jnp.sum(gradient, axis=0, keepdims=True) if shared else gradient).astype(modulation.dtype)
