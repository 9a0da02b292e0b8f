"""The norm behind Mamba-2's scans, with its gate."""

from __future__ import annotations

import jax

from dimba_kernels.dispatch import Implementation, check_rank, check_shapes, choose
from dimba_kernels.sharding import run_sharded, splits_heads

_PACKAGE = "dimba_kernels.gated_norm"
_AXES = dict(y="r b l i", z="b l o", scale="r i")


def gated_rms_norm(
    y: jax.Array,
    z: jax.Array,
    scale: jax.Array,
    *,
    groups: int = 1,
    epsilon: float = 1e-5,
    implementation: Implementation | None = None,
) -> jax.Array:
    """RMSNorm of y * silu(z), each of `groups` slices of the last axis by its own mean square (Mamba-2).

    For r scans at once: their outputs lie in y one behind the other, as `ssd_pair` gives them, and in z and in the
    result side by side, as the projections around them want them. Statistics are float32 (float64 for float64 y).

    Args:
        y: (r, b, l, i).
        z: (b, l, r i), the gates.
        scale: (r, i).
        groups: divides i.
        epsilon: added to the mean square.

    Returns:
        (b, l, r i) in y.dtype.

    Raises:
        ValueError: a shape is not one of the above, or the groups do not divide i.
        NotImplementedError: the implementation asked for cannot run here, or not with these arguments.
    """
    r, b, l, i = check_rank("gated_rms_norm", "y", y, "r b l i")
    check_shapes("gated_rms_norm", z=(z, (b, l, r * i)), scale=(scale, (r, i)))
    if groups < 1 or i % groups:
        raise ValueError(f"gated_rms_norm: {groups} groups do not divide the {i} features; choose a divisor")
    if implementation is None and splits_heads():
        implementation = "xla"  # a device's features are a part of those the mean is over: XLA sums over devices
    arguments = dict(y=y, z=z, scale=scale, groups=groups, epsilon=epsilon)
    run = choose("gated_rms_norm", _PACKAGE, implementation, arguments)
    if run.__module__.rpartition(".")[2] in ("reference", "xla"):
        return run(**arguments)  # which XLA splits by itself
    return run_sharded("gated_rms_norm", run, arguments, _AXES, ("b l o",), pointwise=True)
