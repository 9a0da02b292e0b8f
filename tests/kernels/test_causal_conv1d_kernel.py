"""`causal_conv1d`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import causal_conv1d
from dimba_kernels.causal_conv1d.arg_specs import SHAPES, Shape, arguments
from dimba_kernels.testing import (
    TOLERANCE,
    assert_agreement,
    assert_same_bits_twice,
    gaps,
    outputs_and_gradients,
    packed,
    right_padding,
)

TINY = SHAPES["tiny"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def assert_agrees(run, implementation, arrays, dtype="float32"):
    actual, reference = (partial(run, implementation=name) for name in (implementation, "reference"))
    assert_agreement(actual, reference, arrays, TOLERANCE[dtype])


class Case(NamedTuple):
    l: int
    k: int = 4
    dtype: str = "float32"
    reverse: bool = False
    activation: str | None = "silu"
    mask: Callable[[int, int], jax.Array] | None = None
    segments: bool = False
    without: tuple[str, ...] = ()


# every kind of argument in both directions and in both dtypes, not every product of them
CASES = {
    "one_position": Case(1),
    "shorter_than_the_window": Case(2, reverse=True, mask=right_padding, segments=True),
    "few_arguments": Case(13, activation=None, without=("bias", "tail")),
    "window_of_2": Case(13, k=2, reverse=True),
    "window_of_3": Case(67, k=3, mask=gaps, segments=True),
    "not_activated": Case(29, reverse=True, activation=None, mask=gaps),
    "bfloat16": Case(67, dtype="bfloat16", mask=gaps),
    "bfloat16_segments": Case(29, dtype="bfloat16", reverse=True, mask=right_padding, segments=True),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(implementation, case):
    l, k, dtype, reverse, activation, mask, segments, without = CASES[case]
    arrays = arguments(replace(TINY, l=l, k=k), DTYPES[dtype])
    for name in without:
        del arrays[name]
    seen = dict(mask=mask and mask(2, l), segments=packed(2, l, mean=3) if segments else None)
    run = partial(causal_conv1d, reverse=reverse, activation=activation, **seen)
    assert_agrees(run, implementation, arrays, dtype)


@pytest.mark.parametrize("reverse", [False, True])
def test_width_of_one(reverse):
    assert_agrees(partial(causal_conv1d, reverse=reverse, segments=packed(2, 13)), "xla", arguments(replace(TINY, k=1)))


@pytest.mark.parametrize("seed", range(3))
def test_random_shapes_agree_with_reference(implementation, seed):
    rng = np.random.default_rng(seed)
    b, l, d = (int(rng.integers(1, most + 1)) for most in (3, 150, 40))
    arrays = arguments(Shape(b, l, d, k=2 + seed), seed=seed)
    mask, segments = gaps(b, l, seed) if seed < 2 else None, packed(b, l, 20, seed) if seed > 0 else None
    run = partial(causal_conv1d, mask=mask, segments=segments, reverse=seed == 1, activation="silu")
    assert_agrees(run, implementation, arrays)


def test_by_hand(any_implementation):
    """One channel, taps 1, 10, 100: digits show which position each tap has seen."""
    x, w = jnp.array([[[1.0], [2.0], [3.0], [4.0]]]), jnp.array([[1.0, 10.0, 100.0]])
    run = partial(causal_conv1d, x, w, tail=jnp.array([[[8.0], [9.0]]]), implementation=any_implementation)
    y, tail = run()
    np.testing.assert_array_equal(y[0, :, 0], [198, 219, 321, 432])
    np.testing.assert_array_equal(tail[0, :, 0], [3, 4])
    y, tail = run(reverse=True)
    np.testing.assert_array_equal(y[0, :, 0], [123, 234, 348, 489])
    np.testing.assert_array_equal(tail[0, :, 0], [1, 2])
    y, tail = run(segments=jnp.array([[5, 7, 7, 5]]))
    np.testing.assert_array_equal(y[0, :, 0], [198, 200, 320, 400])
    np.testing.assert_array_equal(tail[0, :, 0], [0, 4])
    y, tail = run(segments=jnp.array([[5, 7, 7, 5]]), reverse=True)
    np.testing.assert_array_equal(y[0, :, 0], [100, 230, 300, 489])
    np.testing.assert_array_equal(tail[0, :, 0], [1, 0])


@pytest.mark.parametrize("reverse", [False, True])
def test_masked_positions_do_not_leak(any_implementation, reverse):
    valid = jnp.array([[True] * 13, [True, False, True, True, False, False, True, True] + [False] * 5])
    run = partial(causal_conv1d, mask=valid, reverse=reverse, activation="silu", implementation=any_implementation)
    arrays = arguments(TINY)
    changed = arrays | {"x": jnp.where(valid[..., None], arrays["x"], jnp.nan)}
    first, second = outputs_and_gradients(run, arrays), outputs_and_gradients(run, changed)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name in ("output 0", "gradient x"):
        assert not np.any(np.where(valid[..., None], 0, first[name])), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 5])
def test_two_halves_with_carried_tail_are_the_whole(any_implementation, reverse, cut):
    run = partial(causal_conv1d, reverse=reverse, activation="silu")
    segments = packed(2, 13)
    segments = segments.at[:, cut].set(segments[:, cut - 1])  # a segment that goes on behind the cut

    def halves(x, w, bias, tail):
        left, right = ((x[:, part], segments[:, part]) for part in (slice(cut), slice(cut, None)))
        first, second = (right, left) if reverse else (left, right)
        y_first, tail = run(first[0], w, bias, tail=tail, segments=first[1], implementation=any_implementation)
        y_second, tail = run(second[0], w, bias, tail=tail, segments=second[1], implementation=any_implementation)
        return jnp.concatenate([y_second, y_first] if reverse else [y_first, y_second], axis=1), tail

    whole = partial(run, segments=segments, implementation="reference")
    assert_agreement(halves, whole, arguments(TINY), TOLERANCE["float32"])


def test_same_bits_twice(implementation):
    arrays = arguments(replace(TINY, l=17), jnp.bfloat16)
    assert_same_bits_twice(partial(causal_conv1d, activation="silu", implementation=implementation), arrays)


@pytest.mark.parametrize("name", ["xla", "gpu"])
def test_gradients_where_weights_alone_are_mapped(name):
    """x and its tail, which all share, get each element's gradient once: through the tail to go on with, too."""
    if name == "gpu":
        pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
    arrays = arguments(TINY)
    weights = arrays["w"] * jnp.arange(1.0, 4.0)[:, None, None]

    def each(implementation, together):
        def run(w, **arrays):
            one = partial(causal_conv1d, **arrays, implementation=implementation)
            return jax.vmap(lambda w: one(w=w))(w) if together else jax.lax.map(lambda w: one(w=w), w)

        return run

    assert_agreement(each(name, True), each("reference", False), arrays | {"w": weights}, TOLERANCE["float32"])


def test_under_vmap_remat_and_scan(implementation):
    run = partial(causal_conv1d, activation="silu", implementation=implementation)
    arrays, others = (arguments(replace(TINY, l=5), seed=seed) for seed in (0, 3))

    def one_by_one(**stacked):
        return jax.lax.map(
            lambda arrays: causal_conv1d(**arrays, activation="silu", implementation="reference"), stacked
        )

    def vectorised(**stacked):
        return jax.vmap(jax.checkpoint(lambda arrays: run(**arrays)))(stacked)

    def scanned(**stacked):
        return jax.lax.map(jax.checkpoint(lambda arrays: run(**arrays)), stacked)

    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), arrays, others)
    assert_agreement(vectorised, one_by_one, stacked, TOLERANCE["float32"])
    assert_agreement(scanned, one_by_one, stacked, TOLERANCE["float32"])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "dtype", "reverse"),
    [
        (Shape(b=3, l=1111, d=1000), "bfloat16", False),
        (Shape(b=3, l=1111, d=1000), "bfloat16", True),
        (Shape(b=1, l=777, d=96, k=3), "float32", True),
        (Shape(b=1, l=8191, d=128), "bfloat16", False),
        (Shape(b=64, l=24, d=160), "bfloat16", True),
    ],
)
def test_large_shapes(shape, dtype, reverse):
    arrays = arguments(shape, DTYPES[dtype])
    seen = {"mask": gaps(shape.b, shape.l), "segments": packed(shape.b, shape.l, 200)} if reverse else {}
    run = partial(causal_conv1d, reverse=reverse, activation="silu", **seen)
    assert_agrees(run, "gpu", arrays, dtype)
    assert_same_bits_twice(partial(run, implementation="gpu"), arrays)


def test_errors_name_the_value():
    arrays = arguments(TINY)
    with pytest.raises(ValueError, match=r"tail has shape \(2, 13, 6\), expected \(2, 3, 6\)"):
        causal_conv1d(**arrays | {"tail": arrays["x"]})
    with pytest.raises(ValueError, match=r"segments has shape \(2, 6\), expected \(2, 13\)"):
        causal_conv1d(**arrays, segments=jnp.zeros((2, 6), jnp.int32))
    with pytest.raises(ValueError, match="activation='relu' is unknown"):
        causal_conv1d(**arrays, activation="relu")
