"""The depthwise causal convolution in front of Mamba's scans."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import Implementation, call, check_rank, check_shapes, check_visibility, choose
from dimba_kernels.sharding import run_sharded, splits_heads, splits_positions

_PACKAGE = "dimba_kernels.causal_conv1d"
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
    _check_activation("causal_conv1d", activation)
    inputs = dict(x=x, w=w, bias=bias, tail=tail, mask=mask, segments=segments)
    statics = dict(reverse=reverse, activation=activation)
    results = ("b l d", "b k-1 d")
    return call("causal_conv1d", _PACKAGE, implementation, inputs | statics, _AXES, results)


def causal_conv1d_pair(
    x: jax.Array,
    x_back: jax.Array,
    w: jax.Array,
    bias: jax.Array,
    *,
    sizes: tuple[int, int, int],
    tail: jax.Array | None = None,
    tail_back: jax.Array | None = None,
    mask: jax.Array | None = None,
    activation: Literal["silu"] | None = None,
    implementation: Implementation | None = None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Two `causal_conv1d` of one shape, [0] forward and [1] in reverse, their results where `ssd_pair` wants them.

    On a GPU the kernels write them there, if 128 divides the sizes and channels and positions are not split over
    devices; elsewhere results are cut and stacked, which copies them.

    Args:
        x, x_back: (b, l, d), the inputs of the one and of the other.
        w, bias: (2, d, k) and (2, d).
        sizes: of the three parts (x, B and C of Mamba-2) that the d channels are cut into.
        tail, tail_back, mask, activation: as in `causal_conv1d`.

    Returns:
        Three parts (2, b, l, size) in x.dtype, and both tails to go on with.

    Raises:
        ValueError: a shape, a dtype or the activation is not one of the above, or the sizes do not add up to d.
        NotImplementedError: the implementation asked for cannot run here, or not with these arguments.
    """
    b, l, d = check_rank("causal_conv1d_pair", "x", x, "b l d")
    k = check_rank("causal_conv1d_pair", "w", w, "2 d k")[2]
    tails = {"tail": (tail, (b, k - 1, d)), "tail_back": (tail_back, (b, k - 1, d))}
    check_shapes("causal_conv1d_pair", x_back=(x_back, x.shape), w=(w, (2, d, k)), bias=(bias, (2, d)), **tails)
    check_visibility("causal_conv1d_pair", mask, None, (b, l))
    _check_activation("causal_conv1d_pair", activation)
    if x.dtype != x_back.dtype:
        raise ValueError(f"causal_conv1d_pair: x is {x.dtype} and x_back {x_back.dtype}, expected one dtype")
    if len(sizes) != 3 or min(sizes) < 0 or sum(sizes) != d:
        raise ValueError(f"causal_conv1d_pair: sizes {sizes} are not three that add up to the {d} channels")
    arguments = dict(x=x, w=w[0], bias=bias[0], tail=tail, mask=mask, segments=None)
    arguments |= dict(reverse=False, activation=activation)
    chosen = choose("causal_conv1d_pair", _PACKAGE, implementation, arguments, "causal_conv1d").__module__
    cuts = chosen.endswith(".gpu") and importlib.import_module(f"{_PACKAGE}.gpu_tiles").can_cut(tuple(sizes))
    if not cuts or splits_heads() or splits_positions():
        one = partial(causal_conv1d, mask=mask, activation=activation, implementation=implementation)
        y, following = one(x, w[0], bias[0], tail=tail)
        y_back, following_back = one(x_back, w[1], bias[1], tail=tail_back, reverse=True)
        edges = [sizes[0], sizes[0] + sizes[1]]
        first, second, third = map(jnp.stack, zip(*(jnp.split(a, edges, axis=-1) for a in (y, y_back)), strict=True))
        return (first, second, third), (following, following_back)
    arrays = dict(x=x, x_back=x_back, w=w, bias=bias, tail=tail, tail_back=tail_back, mask=mask)
    axes = dict(x="b l o", x_back="b l o", w="two o width", bias="two o", tail="b t o", tail_back="b t o", mask="b l")
    results = ("two b l i", "two b l n", "two b l n", "b t o", "b t o")
    statics = dict(sizes=tuple(sizes), activation=activation)
    run = importlib.import_module(f"{_PACKAGE}.gpu_pair").causal_conv1d_pair
    first, second, third, *tails = run_sharded("causal_conv1d_pair", run, arrays | statics, axes, results)
    return (first, second, third), (tails[0], tails[1])


def _check_activation(operation: str, activation: str | None) -> None:
    if activation not in (None, "silu"):
        raise ValueError(f"{operation}: activation={activation!r} is unknown; pass 'silu' or None")
