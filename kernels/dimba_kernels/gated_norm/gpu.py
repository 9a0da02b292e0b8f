"""The gated norm on a GPU: one Triton kernel forward, one backward, each reading its inputs once."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.gated_norm import gpu_kernels
from dimba_kernels.triton_call import triton_call

_DTYPES = ("float32", "bfloat16", "float16")
_WIDEST = 8192  # features of a group, which a program holds in registers
_PROGRAMS = 1056  # of the backward pass: 8 for each of 132 multiprocessors, each with a share of the sums over rows


class _Static(NamedTuple):
    groups: int
    epsilon: float


def unsupported(y: jax.Array, z: jax.Array, scale: jax.Array, *, groups: int, epsilon: float) -> str | None:
    """Why these arguments cannot run here, or None."""
    del scale, epsilon
    for name, array in (("y", y), ("z", z)):
        if array.dtype.name not in _DTYPES:
            return f"{name} is {array.dtype.name}, and the kernels take {', '.join(_DTYPES)}"
    if y.shape[3] // groups > _WIDEST:
        return f"a group has {y.shape[3] // groups} features, and the kernels take up to {_WIDEST}"
    if 0 in y.shape:
        return f"y is empty: {y.shape}"
    if y.shape[0] * groups > 65535:
        return f"{y.shape[0]} scans of {groups} groups are more than one launch takes"
    return None


def gated_rms_norm(y: jax.Array, z: jax.Array, scale: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """See `dimba_kernels.gated_rms_norm`."""
    return _norm(_Static(groups, epsilon), y, z, scale)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(static: _Static, y: jax.Array, z: jax.Array, scale: jax.Array) -> jax.Array:
    constants, parts, warps = _constants(static, y)
    (out,) = triton_call(
        gpu_kernels.forward,
        [y, z, scale],
        [jax.ShapeDtypeStruct(z.shape, y.dtype)],
        grid=(constants["ROWS"], parts),
        constants=constants,
        warps=warps,
    )
    return out


def _forward(static: _Static, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _norm(static, *arrays), arrays


def _backward(static: _Static, arrays: tuple[jax.Array, ...], dout: jax.Array) -> tuple[jax.Array, ...]:
    y, z, scale = arrays
    constants, parts, warps = _constants(static, y)
    programs = min(constants["ROWS"], max(1, _PROGRAMS // parts))
    dy, dz, partials = triton_call(
        gpu_kernels.backward,
        [y, z, scale, dout],
        [
            jax.ShapeDtypeStruct(y.shape, y.dtype),
            jax.ShapeDtypeStruct(z.shape, z.dtype),
            jax.ShapeDtypeStruct((programs, *scale.shape), jnp.float32),
        ],
        grid=(programs, parts),
        constants=constants | {"PROGRAMS": programs},
        warps=warps,
    )
    return dy, dz, jnp.sum(partials, axis=0).astype(scale.dtype)


_norm.defvjp(_forward, _backward)


def _constants(static: _Static, y: jax.Array) -> tuple[dict[str, Any], int, int]:
    """What both kernels are compiled for, the parts of a row, and the warps that hold one."""
    r, b, l, i = y.shape
    width = i // static.groups
    block = 1 << (width - 1).bit_length()
    constants = dict(ROWS=b * l, R=r, GROUPS=static.groups, WIDTH=width, BLOCK=block, EPSILON=static.epsilon)
    return constants, r * static.groups, min(8, max(1, block // 512))
