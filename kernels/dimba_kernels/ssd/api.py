"""Mamba-2's scan: in one direction, in both at once, and two of them in opposite directions."""

from __future__ import annotations

import jax

from dimba_kernels.dispatch import Implementation, call, check_rank, check_shapes, check_visibility

_PACKAGE = "dimba_kernels.ssd"
_AXES = dict(x="b l h p", dt="b l h", A="h", B="b l g n", C="b l g n", D="h", h0="b h p n", mask="b l", segments="b l")
_PAIR_AXES = {name: axes if name in ("mask", "segments") else f"2 {axes}" for name, axes in _AXES.items()}


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
    segments: jax.Array | None = None,
    reverse: bool = False,
    chunk: int | None = None,
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
        mask: (b, l) bool; where it is False the state passes unchanged and y is zero. Nothing that stands there
            counts, NaN included, and its gradients are zero.
        segments: (b, l) integers or None for one segment; the state does not pass between neighbours of different
            ids: at such a place, masked or not, it starts from zero. h0 enters the segment of the first position.
        chunk: a hint, how many positions become one matmul; None chooses. Any positive number gives the same result.

    Returns:
        y (b, l, h, p) in x.dtype, and h_last (b, h, p, n) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a shape or dtype is not one of the above, g does not divide h, or chunk < 1.
        NotImplementedError: the implementation asked for cannot run here, or not with these arguments.
    """
    _check("ssd", x, dt, A, B, C, D, h0, mask, segments, chunk)
    inputs = dict(x=x, dt=dt, A=A, B=B, C=C, D=D, h0=h0, mask=mask, segments=segments)
    statics = dict(reverse=reverse, chunk=chunk)
    return call("ssd", _PACKAGE, implementation, inputs | statics, _AXES, ("b l h p", "b h p n"))


def ssd_bidirectional(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    chunk: int | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """The sum of the forward and the reverse `ssd` of the same inputs, with D x counted once.

    Each direction contains the position itself, so its own term C_i B_i dt_i x_i counts twice. Inside a chunk one
    matmul serves both directions.

    Args: as in `ssd`. Returns: y (b, l, h, p) in x.dtype. Raises: as `ssd`.
    """
    _check("ssd_bidirectional", x, dt, A, B, C, D, None, mask, segments, chunk)
    inputs = dict(x=x, dt=dt, A=A, B=B, C=C, D=D, mask=mask, segments=segments)
    return call("ssd_bidirectional", _PACKAGE, implementation, inputs | dict(chunk=chunk), _AXES, ("b l h p",))


def ssd_pair(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    h0: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    chunk: int | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Two `ssd` of one shape and of inputs of their own: [0] runs forward, [1] in reverse, in the same launches.

    Args: as in `ssd`, with a leading axis of 2 on x, dt, A, B, C, D and h0; mask and segments serve both.
    Returns: y (2, b, l, h, p) and h_last (2, b, h, p, n). Raises: as `ssd`.
    """
    for name, array, letters in (("x", x, "2 b l h p"), ("B", B, "2 b l g n")):
        if check_rank("ssd_pair", name, array, letters)[0] != 2:
            raise ValueError(f"ssd_pair: {name} has shape {array.shape}, expected axes ({letters})")
    _check("ssd_pair", x, dt, A, B, C, D, h0, mask, segments, chunk)
    inputs = dict(x=x, dt=dt, A=A, B=B, C=C, D=D, h0=h0, mask=mask, segments=segments)
    results = ("2 b l h p", "2 b h p n")
    return call("ssd_pair", _PACKAGE, implementation, inputs | dict(chunk=chunk), _PAIR_AXES, results)


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
    segments: jax.Array | None,
    chunk: int | None,
) -> None:
    pair = () if operation != "ssd_pair" else (2,)
    letters = "" if not pair else "2 "
    b, l, h, p = check_rank(operation, "x", x, f"{letters}b l h p")[-4:]
    g, n = check_rank(operation, "B", B, f"{letters}b l g n")[-2:]
    check_shapes(
        operation,
        dt=(dt, (*pair, b, l, h)),
        A=(A, (*pair, h)),
        B=(B, (*pair, b, l, g, n)),
        C=(C, (*pair, b, l, g, n)),
        D=(D, (*pair, h)),
        h0=(h0, (*pair, b, h, p, n)),
    )
    check_visibility(operation, mask, segments, (b, l))
    if h % g:
        raise ValueError(f"{operation}: {g} groups do not divide {h} heads; choose a number of groups that does")
    if chunk is not None and chunk < 1:
        raise ValueError(f"{operation}: chunk={chunk}, expected a positive number of positions or None")
