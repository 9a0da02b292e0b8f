"""Add and norm: what stands between two branches of a block, in one operation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import Implementation, check_rank, check_shapes, choose
from dimba_kernels.sharding import run_sharded, splits_heads

_PACKAGE = "dimba_kernels.modulated_norm"


def modulated_rms_norm(
    h: jax.Array,
    weight: jax.Array,
    scale: jax.Array | None = None,
    shift: jax.Array | None = None,
    branch: jax.Array | None = None,
    gate: jax.Array | None = None,
    *,
    dtype: jnp.dtype | type | str | None = None,
    epsilon: float = 1e-5,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """total = h + gate * branch, and RMSNorm(total) * weight * (1 + scale) + shift (DiT's adaLN-Zero, 2212.09748).

    Use the returned total as the residual stream that goes on, with or without a branch: the backward pass then adds
    the stream's gradient to the norm's where it computes that. Sums and statistics are float32 (float64 for float64 h).

    Args:
        h: (b, l, d), the residual stream. The total is rounded to its dtype before it is normed.
        weight: (d,).
        scale, shift, gate: (b or 1, l or 1, d), of rows and positions or shared by them; None: 0, 0, 1. The GPU kernels
            take one of a row or shared by all rows, no one of a position.
        branch: (b, l, d), what is added first; None: nothing is.
        dtype: of the normed result; h.dtype by default.
        epsilon: added to the mean square.

    Returns:
        total (b, l, d) in h.dtype, and the normed one (b, l, d) in `dtype`.

    Raises:
        ValueError: a shape or dtype is not one of the above, or there is a gate and no branch.
        NotImplementedError: the implementation asked for cannot run here, or not with these arguments.
    """
    b, l, d = check_rank("modulated_rms_norm", "h", h, "b l d")
    check_shapes("modulated_rms_norm", weight=(weight, (d,)), branch=(branch, (b, l, d)))
    for name, array in (("scale", scale), ("shift", shift), ("gate", gate)):
        if array is not None and (array.ndim != 3 or array.shape != (_some(array, 0, b), _some(array, 1, l), d)):
            raise ValueError(f"modulated_rms_norm: {name} has shape {array.shape}, expected ({b} or 1, {l} or 1, {d})")
    dtype = jnp.dtype(h.dtype if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"modulated_rms_norm: dtype={dtype}, expected a floating one")
    if gate is not None and branch is None:
        raise ValueError("modulated_rms_norm: a gate without a branch; pass both, or neither")
    if implementation is None and splits_heads():
        implementation = "xla"  # nothing here is split over those devices: XLA places it as what is around wants it
    arguments = dict(h=h, weight=weight, scale=scale, shift=shift, branch=branch, gate=gate)
    arguments |= dict(dtype=dtype, epsilon=epsilon)
    run = choose("modulated_rms_norm", _PACKAGE, implementation, arguments)
    if run.__module__.rpartition(".")[2] in ("reference", "xla"):
        return run(**arguments)  # which XLA splits by itself
    axes = {"h": "b l o", "weight": "o", "branch": "b l o"}
    for name, array in (("scale", scale), ("shift", shift), ("gate", gate)):
        if array is not None:
            axes[name] = f"{'b' if array.shape[0] == b else 'one'} position o"
    return run_sharded("modulated_rms_norm", run, arguments, axes, ("b l o", "b l o"), pointwise=True)


def _some(array: jax.Array, axis: int, size: int) -> int:
    """1 if the array is shared along an axis, else the size it must have."""
    return 1 if array.shape[axis] == 1 else size
