"""The depthwise causal convolution in front of Mamba's scans."""

from __future__ import annotations

from typing import Literal

import jax

from dimba_kernels.dispatch import Implementation, call, check_rank, check_shapes, check_visibility

_AXES = dict(x="b l d", w="d k", bias="d", tail="b k-1 d", mask="b l", segments="b l")


def causal_conv1d(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    tail: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    reverse: bool = False,
    activation: Literal["silu"] | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Depthwise convolution y_i = act(bias + sum_j w_j x_{i-(k-1)+j}): position i sees itself and k-1 before it.

    Sums run in float32 (float64 for float64 inputs). With `reverse` position i sees itself and the k-1 behind it:
    the same on the flipped sequence, flipped back.

    Args:
        x: (b, l, d).
        w: (d, k); w[:, k-1] multiplies the position itself, in either direction.
        bias: (d,) or None.
        tail: (b, k-1, d), the inputs just before the sequence (with `reverse`: just behind it), in order of
            position; None is zeros. A carried tail makes a sequence cut in two equal the whole.
        mask: (b, l) bool; where it is False x counts as zero and y is zero. NaN there does not count either, and its
            gradient is zero.
        segments: (b, l) integers or None for one segment; to a position, what lies beyond a place where neighbours
            have different ids counts as zero. `tail` belongs to the segment of the position next to it.
        activation: "silu" or None.

    Returns:
        y (b, l, d) in x.dtype, and the tail (b, k-1, d) in x.dtype to go on with: the last k-1 inputs (with
        `reverse` the first), those of other segments than the last position's (the first's) as zeros.

    Raises:
        ValueError: a shape, a dtype or the activation is not one of the above.
        NotImplementedError: the implementation asked for cannot run here, or not with these arguments.
    """
    b, l, d = check_rank("causal_conv1d", "x", x, "b l d")
    _, k = check_rank("causal_conv1d", "w", w, "d k")
    check_shapes("causal_conv1d", w=(w, (d, k)), bias=(bias, (d,)), tail=(tail, (b, k - 1, d)))
    check_visibility("causal_conv1d", mask, segments, (b, l))
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation={activation!r} is unknown; pass 'silu' or None")
    inputs = dict(x=x, w=w, bias=bias, tail=tail, mask=mask, segments=segments)
    statics = dict(reverse=reverse, activation=activation)
    results = ("b l d", "b k-1 d")
    return call("causal_conv1d", "dimba_kernels.causal_conv1d", implementation, inputs | statics, _AXES, results)
