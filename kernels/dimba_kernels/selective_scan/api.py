"""Mamba's selective scan."""

from __future__ import annotations

import jax

from dimba_kernels.dispatch import Implementation, call, check_rank, check_shapes, check_visibility

_AXES = dict(u="b l d", dt="b l d", A="d n", B="b l n", C="b l n", D="d", z="b l d", h0="b d n", mask="b l")
_AXES |= dict(segments="b l", dt_bias="d")


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
    segments: jax.Array | None = None,
    dt_bias: jax.Array | None = None,
    dt_softplus: bool = False,
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
        dt: (b, l, d); not negative, unless `dt_softplus` makes it so.
        A: (d, n), negative.
        B, C: (b, l, n).
        D: (d,) or None.
        z: (b, l, d) or None for no gate.
        h0: (b, d, n) or None for zeros.
        mask: (b, l) bool; where it is False the state passes unchanged and y is zero. Nothing that stands there
            counts, NaN included, and its gradients are zero.
        segments: (b, l) integers or None for one segment; the state does not pass between neighbours of different
            ids: at such a place, masked or not, it starts from zero. h0 enters the segment of the first position.
        dt_bias: (d,), added to dt in float32 first, or None. Its gradient, and that of dt, are of what was passed.
        dt_softplus: the steps are softplus(dt + dt_bias), computed here in float32: dt may then be bfloat16.
        chunk: a hint, how many positions are one step of a scan over chunks; None chooses. Any positive number gives
            the same result.

    Returns:
        y (b, l, d) in u.dtype, and h_last (b, d, n) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a shape or dtype is not one of the above, or chunk < 1.
        NotImplementedError: the implementation asked for cannot run here, or not with these arguments.
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
        dt_bias=(dt_bias, (d,)),
    )
    check_visibility("selective_scan", mask, segments, (b, l))
    if chunk is not None and chunk < 1:
        raise ValueError(f"selective_scan: chunk={chunk}, expected a positive number of positions or None")
    inputs = dict(u=u, dt=dt, A=A, B=B, C=C, D=D, z=z, h0=h0, mask=mask, segments=segments, dt_bias=dt_bias)
    statics = dict(dt_softplus=dt_softplus, reverse=reverse, chunk=chunk)
    results = ("b l d", "b d n")
    return call("selective_scan", "dimba_kernels.selective_scan", implementation, inputs | statics, _AXES, results)
