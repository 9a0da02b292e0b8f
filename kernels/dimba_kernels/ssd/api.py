"""Mamba-2's scan, in one direction or in both at once."""

from __future__ import annotations

import jax

from dimba_kernels.dispatch import Implementation, check_rank, check_shapes, choose, unmasked
from dimba_kernels.ssd import reference, xla

_ONE_WAY = {"reference": reference.ssd, "xla": xla.ssd}
_BOTH_WAYS = {"reference": reference.ssd_bidirectional, "xla": xla.ssd_bidirectional}


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    h0: jax.Array | None = None,
    mask: jax.Array | None = None,
    reverse: bool = False,
    chunk: int = 64,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """State-space duality (Mamba-2, Dao and Gu 2024, eq. 1 and section 6).

    Per head: h_i = exp(dt_i A) h_{i-1} + dt_i x_i B_i^T and y_i = h_i C_i + D x_i. With `reverse` the same on the
    flipped sequence, flipped back: h0 enters behind the last position and h_last is the state at the first.

    Args:
        x: (b, l, h, p).
        dt: (b, l, h), not negative (softplus already applied).
        A: (h,), negative.
        B, C: (b, l, g, n); g divides h, and head i belongs to group i // (h // g).
        D: (h,) or None.
        h0: (b, h, p, n) or None for zeros.
        mask: (b, l) bool; where it is False the state passes unchanged and y is zero.
        chunk: positions per chunk of the "xla" form; any positive number gives the same result.

    Returns:
        y (b, l, h, p) in x.dtype, and h_last (b, h, p, n) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a shape is not one of the above, g does not divide h, or chunk < 1.
        NotImplementedError: the implementation does not exist yet.
    """
    _check("ssd", x, dt, A, B, C, D, h0, mask, chunk)
    x, dt, B, C = unmasked(mask, x, dt, B, C)
    run = choose("ssd", implementation, _ONE_WAY)
    return run(x, dt, A, B, C, D=D, h0=h0, mask=mask, reverse=reverse, chunk=chunk)


def ssd_bidirectional(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk: int = 64,
    implementation: Implementation | None = None,
) -> jax.Array:
    """The sum of the forward and the reverse `ssd` of the same inputs, with D x counted once.

    Each direction contains the position itself, so its own term C_i B_i dt_i x_i counts twice. The "xla" form needs
    one matmul for both directions inside a chunk.

    Args: as in `ssd`. Returns: y (b, l, h, p) in x.dtype. Raises: as `ssd`.
    """
    _check("ssd_bidirectional", x, dt, A, B, C, D, None, mask, chunk)
    x, dt, B, C = unmasked(mask, x, dt, B, C)
    run = choose("ssd_bidirectional", implementation, _BOTH_WAYS)
    return run(x, dt, A, B, C, D=D, mask=mask, chunk=chunk)


def _check(
    operation: str,
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    chunk: int,
) -> None:
    b, l, h, p = check_rank(operation, "x", x, "b l h p")
    _, _, g, n = check_rank(operation, "B", B, "b l g n")
    check_shapes(
        operation,
        dt=(dt, (b, l, h)),
        A=(A, (h,)),
        B=(B, (b, l, g, n)),
        C=(C, (b, l, g, n)),
        D=(D, (h,)),
        h0=(h0, (b, h, p, n)),
        mask=(mask, (b, l)),
    )
    if h % g:
        raise ValueError(f"{operation}: {g} groups do not divide {h} heads; choose a number of groups that does")
    if chunk < 1:
        raise ValueError(f"{operation}: chunk={chunk}, expected a positive number of positions")
