"""`selective_scan` on a GPU: Triton kernels, forward and backward.

Forward: a program keeps the states of a block of channels in registers and walks along the sequence. Where batch and
channels are too few to fill the device the sequence is cut into segments: one kernel finds what each segment adds to
the state, a second the states that enter the segments, and then all segments run at once. Backward: the forward pass
saves the state every few positions, in bfloat16 where u, B and C are that, else in float32; segments again, for the
gradients of the states, and within a segment the states between saved ones are computed anew. No intermediate is as
large as (b, l, d, n).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from dimba_kernels.selective_scan.gpu_arguments import Arrays, Statics, constants_of, flags_of, packed, unpacked
from dimba_kernels.selective_scan.gpu_backward import selective_scan_backward
from dimba_kernels.selective_scan.gpu_forward import (
    selective_scan_borders,
    selective_scan_forward,
    selective_scan_segments,
)
from dimba_kernels.selective_scan.gpu_tiles import Layout, Tiles, tiles
from dimba_kernels.triton_call import triton_call

_DTYPES = ("float32", "bfloat16")
_MOST_STATES = 128


def unsupported(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    h0: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    dt_bias: jax.Array | None = None,
    dt_softplus: bool = False,
    reverse: bool = False,
    chunk: int | None = None,
) -> str | None:
    """Why the kernels cannot run with these arguments; None if they can."""
    del mask, segments, dt_softplus, reverse, chunk
    named = dict(u=u, dt=dt, A=A, B=B, C=C, D=D, z=z, h0=h0, dt_bias=dt_bias)
    for name, value in named.items():
        if value is not None and value.dtype.name not in _DTYPES:
            return f"{name} is {value.dtype.name}, not one of {', '.join(_DTYPES)}"
    if A.shape[1] > _MOST_STATES:
        return f"{A.shape[1]} states are more than {_MOST_STATES}"
    if 0 in (*u.shape, A.shape[1]):
        return "an axis is empty"
    if u.shape[0] > 65535:
        return f"a batch of {u.shape[0]} is more than CUDA's grid has programs along an axis"
    if u.shape[1] * u.shape[2] >= 2**31:
        return "a sequence has too many elements for 32-bit offsets within it"
    return None


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    z: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    dt_bias: jax.Array | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.selective_scan`; `chunk` has no effect here."""
    del chunk
    flags = flags_of(mask, segments, reverse)
    arrays = Arrays(u, dt, A, B, C, D, z, h0, dt_bias, flags)
    return _scan(Statics(dt_softplus, reverse), arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(statics: Statics, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    y, last, _ = _forward(statics, arrays, save=False)
    return y, last


def _scan_fwd(statics: Statics, arrays: Arrays) -> tuple[tuple[jax.Array, jax.Array], tuple[Arrays, jax.Array]]:
    y, last, saved = _forward(statics, arrays, save=True)
    return (y, last), (arrays, saved)


def _scan_bwd(
    statics: Statics, kept: tuple[Arrays, jax.Array], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Arrays]:
    (arrays, saved), (dy, dlast) = kept, cotangents
    return (_backward(statics, arrays, saved, dy, dlast),)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _tiles(arrays: Arrays) -> Tiles:
    gpu = jax.default_backend() in ("gpu", "cuda")
    b, l, d = arrays.u.shape
    plan = tiles(jax.devices()[0].device_kind if gpu else "NVIDIA H200", b, l, d, arrays.A.shape[1])
    plan.check()
    return plan


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _or(array: jax.Array | None, other: jax.Array) -> jax.Array:
    """A kernel takes a pointer even to what it does not read."""
    return other if array is None else array


def _forward(statics: Statics, arrays: Arrays, save: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """y, the last state, and the states (b, blocks, d, n) before every `Tiles.save` positions."""
    u, dt, A, _, _, D, z, h0, bias, flags = arrays
    (b, l, d), n = u.shape, A.shape[1]
    plan = _tiles(arrays)
    layout, segment = plan.forward, min(plan.forward_segment, -(-l // plan.save) * plan.save)
    start = None if h0 is None else h0.astype(jnp.float32)
    if segment < l:
        start = _enter(statics, arrays, plan.segments, segment, u, start, adjoint=False)
    borders = jax.ShapeDtypeStruct((b, -(-l // plan.save), d, n), _saved_dtype(arrays)) if save else _float32(1)
    constants = constants_of(arrays, statics, layout, segment)
    constants |= dict(SAVE=plan.save if save else 0, HAS_D=D is not None, HAS_START=start is not None)
    BC = packed(arrays, statics, layout, segment)
    y, last, saved = triton_call(
        selective_scan_forward,
        [u, dt, A, BC, _or(D, A), _or(z, u), _or(bias, A), _or(flags, u), _or(start, A)],
        [jax.ShapeDtypeStruct(u.shape, u.dtype), _float32(b, d, n), borders],
        grid=(-(-d // layout.block(n)), b, -(-l // segment)),
        constants=constants,
        warps=layout.warps,
        stages=1,
    )
    return y, last, saved


def _saved_dtype(arrays: Arrays) -> jnp.dtype:
    """Of saved states, and of the channel blocks' shares of B's and C's gradients: bfloat16 where it rounds them no
    worse than the inputs they come from, and no error is carried from one to the next."""
    narrow = all(value.dtype == jnp.bfloat16 for value in (arrays.u, arrays.B, arrays.C))
    return jnp.dtype(jnp.bfloat16 if narrow else jnp.float32)


def _enter(
    statics: Statics,
    arrays: Arrays,
    layout: Layout,
    segment: int,
    v: jax.Array,
    enter: jax.Array | None,
    adjoint: bool,
) -> jax.Array:
    """The states that enter the segments (b, segments, d, n), or the gradients that enter them from behind.

    Args:
        v: u, or the cotangent of y.
        enter: (b, d, n), the initial state, or the cotangent of the last one.
    """
    u, dt, A, _, _, _, z, _, bias, flags = arrays
    (b, l, d), n = u.shape, A.shape[1]
    count = -(-l // segment)
    constants = constants_of(arrays, statics, layout, segment)
    BC = packed(arrays, statics, layout, segment)
    added, span = triton_call(
        selective_scan_segments,
        [v, dt, A, BC, _or(z, u), _or(bias, A), _or(flags, u)],
        [_float32(b, count, d, n), _float32(b, count, d)],
        grid=(-(-d // layout.block(n)), b, count - 1),
        constants=constants | dict(ADJOINT=adjoint),
        warps=layout.warps,
        stages=1,
    )
    passes_nothing = None
    if flags is not None:
        ordered = (flags[:, ::-1] if statics.reverse else flags) // 2
        passes_nothing = jnp.pad(ordered, [(0, 0), (0, count * segment - l)]).reshape(b, count, segment).max(2)
    block = 256
    (entering,) = triton_call(
        selective_scan_borders,
        [added, span, A, _or(passes_nothing, A), _or(enter, A)],
        [_float32(b, count, d, n)],
        grid=(-(-d * n // block), b),
        constants=dict(D=d, N=n, SEGMENTS=count, BLOCK=block, FLAGS=flags is not None, HAS_ENTER=enter is not None)
        | dict(ADJOINT=adjoint),
        warps=4,
    )
    return entering


def _gradients(
    statics: Statics, arrays: Arrays, plan: Tiles, segment: int, saved: jax.Array, dy: jax.Array, enter: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """What `selective_scan_backward` returns, and dBC summed over the channel blocks, one part of them at a time."""
    u, dt, A, _, _, D, z, _, bias, flags = arrays
    (b, l, d), n = u.shape, A.shape[1]
    layout, count = plan.backward, -(-l // segment)
    none = _float32(1)
    whole = [
        *(jax.ShapeDtypeStruct(value.shape, value.dtype) for value in (u, dt)),
        none if z is None else jax.ShapeDtypeStruct(z.shape, z.dtype),
        _float32(b * count, d, n),
        none if D is None else _float32(b * count, d),
        none if bias is None else _float32(b * count, d),
        _float32(b, d, n),
    ]
    BC = packed(arrays, statics, layout, segment)
    blocks = -(-d // layout.block(n))
    each = -(-blocks // plan.backward_parts)
    found, dBC = [], jnp.zeros(BC.shape, jnp.float32)
    for first in range(0, blocks, each):
        first_block = jnp.full(1, first, jnp.int32)
        if found:  # or XLA might keep the shares of all parts before it sums the first
            first_block, dBC = jax.lax.optimization_barrier((first_block, dBC))
        part = min(each, blocks - first)
        inputs = [u, dt, A, BC, _or(D, A), _or(z, u), _or(bias, A), _or(flags, u), saved, dy, enter, first_block]
        *found, shares = triton_call(
            selective_scan_backward,
            inputs if found else [*inputs, *(jnp.zeros(1, output.dtype) for output in whole)],
            [*whole, jax.ShapeDtypeStruct((part, *BC.shape), _saved_dtype(arrays))],
            grid=(part, b, count),
            constants=constants_of(arrays, statics, layout, segment) | dict(SAVE=plan.save, HAS_D=D is not None),
            warps=layout.warps,
            stages=1,
            unfinished=found,
        )
        dBC = dBC + shares.sum(0, dtype=jnp.float32)
    return found, dBC


def _backward(statics: Statics, arrays: Arrays, saved: jax.Array, dy: jax.Array, dlast: jax.Array) -> Arrays:
    _, _, A, B, C, D, z, h0, bias, _ = arrays
    l, n = arrays.u.shape[1], A.shape[1]
    plan = _tiles(arrays)
    segment = min(plan.backward_segment, -(-l // plan.save) * plan.save)
    enter = dlast.astype(jnp.float32)
    if l > segment:
        enter = _enter(statics, arrays, plan.segments, segment, dy, enter, adjoint=True)
    (du, ddt, dz, dA, dD, dbias, dstart), dBC = _gradients(statics, arrays, plan, segment, saved, dy, enter)
    dB, dC = unpacked(dBC, statics, l, n)
    return Arrays(
        u=du,
        dt=ddt,
        A=dA.sum(0).astype(A.dtype),
        B=dB.astype(B.dtype),
        C=dC.astype(C.dtype),
        D=None if D is None else dD.sum(0).astype(D.dtype),
        z=None if z is None else dz,
        h0=None if h0 is None else dstart.astype(h0.dtype),
        dt_bias=None if bias is None else dbias.sum(0).astype(bias.dtype),
        flags=None,
    )
