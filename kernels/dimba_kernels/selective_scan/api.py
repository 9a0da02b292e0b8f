"""Mamba's selective scan."""

from __future__ import annotations

import jax

from dimba_kernels.dispatch import Implementation, check_rank, check_shapes, choose, unmasked
from dimba_kernels.selective_scan import reference, xla

_AVAILABLE = {"reference": reference.selective_scan, "xla": xla.selective_scan}


def selective_scan(
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
    reverse: bool = False,
    chunk: int | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The selective state-space scan S6 (Mamba, Gu and Dao 2023, algorithm 2).

    Per channel: h_i = exp(dt_i A) h_{i-1} + dt_i u_i B_i and y_i = (C_i h_i + D u_i) silu(z_i). With `reverse` the
    same on the flipped sequence, flipped back: h0 enters behind the last position, h_last is the state at the first.
    The state and every sum are float32 (float64 for float64 inputs).

    Args:
        u: (b, l, d).
        dt: (b, l, d), not negative (softplus already applied).
        A: (d, n), negative.
        B, C: (b, l, n).
        D: (d,) or None.
        z: (b, l, d) or None for no gate.
        h0: (b, d, n) or None for zeros.
        mask: (b, l) bool; where it is False the state passes unchanged and y is zero.
        chunk: positions per step of the "xla" scan over chunks; None chooses. Any positive number gives the same
            result.

    Returns:
        y (b, l, d) in u.dtype, and h_last (b, d, n) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a shape is not one of the above, or chunk < 1.
        NotImplementedError: the implementation does not exist yet.
    """
    b, l, d = check_rank("selective_scan", "u", u, "b l d")
    _, n = check_rank("selective_scan", "A", A, "d n")
    check_shapes(
        "selective_scan",
        dt=(dt, (b, l, d)),
        A=(A, (d, n)),
        B=(B, (b, l, n)),
        C=(C, (b, l, n)),
        D=(D, (d,)),
        z=(z, (b, l, d)),
        h0=(h0, (b, d, n)),
        mask=(mask, (b, l)),
    )
    if chunk is not None and chunk < 1:
        raise ValueError(f"selective_scan: chunk={chunk}, expected a positive number of positions or None")
    u, dt, B, C = unmasked(mask, u, dt, B, C)
    if z is not None:
        (z,) = unmasked(mask, z)
    run = choose("selective_scan", implementation, _AVAILABLE)
    return run(u, dt, A, B, C, D=D, z=z, h0=h0, mask=mask, reverse=reverse, chunk=chunk)
