"""`ssd`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import ssd, ssd_pair
from dimba_kernels.ssd.arg_specs import SHAPES, Shape, arguments
from dimba_kernels.testing import (
    TOLERANCE,
    assert_agreement,
    assert_same_bits_twice,
    gaps,
    outputs_and_gradients,
    packed,
    right_padding,
)

TINY = replace(SHAPES["tiny"], b=1, h=2)  # the time of an interpreter is in the number of programs
SMALL = replace(TINY, p=16, n=16)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# A's gradient sums terms of either sign over the whole sequence. Their rounding stays when they cancel: over 48 draws
# its relative error had a median of .0025 and a maximum of .019, while that of dt, term by term, stayed below .0035.
LOOSER = {"float32": {}, "bfloat16": {"gradient A": 3e-2}}


def assert_agrees(run, implementation, arrays, dtype="float32", looser=None):
    actual, reference = (partial(run, implementation=name) for name in (implementation, "reference"))
    assert_agreement(actual, reference, arrays, TOLERANCE[dtype], looser=looser or LOOSER[dtype])


class Case(NamedTuple):
    l: int
    b: int = 1
    g: int = 1
    dtype: str = "float32"
    reverse: bool = False
    chunk: int | None = None
    mask: Callable[[int, int], jax.Array] | None = None
    segments: bool = False
    without: tuple[str, ...] = ()


# every kind of argument in both directions and in both dtypes, not every product of them
CASES = {
    "one_position": Case(1),
    "few_arguments": Case(13, reverse=True, chunk=5, without=("D", "h0")),
    "groups": Case(67, g=2, chunk=16),
    "segments": Case(67, segments=True),
    "all_at_once": Case(67, g=2, reverse=True, mask=gaps, segments=True, chunk=16),
    "right_padding": Case(29, b=2, reverse=True, mask=right_padding, chunk=16),
    "bfloat16": Case(67, g=2, dtype="bfloat16", reverse=True, mask=gaps, segments=True, chunk=16),
    "bfloat16_padded": Case(67, b=2, dtype="bfloat16", mask=right_padding, chunk=16),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(implementation, case):
    l, b, g, dtype, reverse, chunk, mask, segments, without = CASES[case]
    arrays = arguments(replace(SMALL, b=b, l=l, g=g), DTYPES[dtype])
    for name in without:
        del arrays[name]
    seen = dict(mask=mask and mask(b, l), segments=packed(b, l) if segments else None)
    assert_agrees(partial(ssd, reverse=reverse, chunk=chunk, **seen), implementation, arrays, dtype)


@pytest.mark.parametrize("seed", range(3))
def test_random_shapes_agree_with_reference(implementation, seed):
    rng = np.random.default_rng(seed)
    g, r = rng.integers(1, 3, size=2)
    b, l, p, n = (int(rng.integers(1, most + 1)) for most in (3, 100, 20, 20))
    arrays = arguments(Shape(b=b, l=l, h=int(g * r), p=p, n=n, g=int(g)), seed=seed)
    if seed % 2:
        del arrays["D"]
    mask, segments = gaps(b, l, seed) if seed != 1 else None, packed(b, l, 20, seed) if seed > 0 else None
    run = partial(ssd, mask=mask, segments=segments, reverse=seed in (1, 2), chunk=int(rng.integers(1, 65)))
    assert_agrees(run, implementation, arrays)


@pytest.mark.parametrize("reverse", [False, True])
def test_many_chunks_agree_with_reference(reverse):
    """34 chunks: the states between them pass through blocks of blocks."""
    arrays = arguments(replace(TINY, l=67, g=2))
    assert_agrees(partial(ssd, reverse=reverse, chunk=2, segments=packed(1, 67)), "xla", arrays)


def test_segments_are_sequences_of_their_own(any_implementation):
    arrays = arguments(replace(TINY, l=21))
    run = jax.jit(partial(ssd, chunk=8, implementation=any_implementation))
    whole, h_last = run(**arrays, segments=jnp.asarray([[0] * 9 + [1] * 12]))
    parts = [
        run(**{k: v[:, cut] if k in ("x", "dt", "B", "C") else v for k, v in arrays.items()} | {"h0": h0})
        for cut, h0 in ((slice(9), arrays["h0"]), (slice(9, 21), None))
    ]
    np.testing.assert_allclose(whole, jnp.concatenate([y for y, _ in parts], axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(h_last, parts[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mask", "reverse"), [(right_padding, True), (gaps, False)])
def test_masked_positions_do_not_leak(any_implementation, reverse, mask):
    """Nothing that stands at masked positions changes anything, NaN included, and no gradient reaches them."""
    l = 13
    valid = mask(2, l)
    run = partial(ssd, reverse=reverse, chunk=8, mask=valid, implementation=any_implementation)
    arrays = arguments(replace(TINY, b=2, l=l))
    places = {name: valid.reshape(2, l, *[1] * (arrays[name].ndim - 2)) for name in ("x", "dt", "B", "C")}
    changed = arrays | {name: jnp.asarray(np.where(place, arrays[name], np.nan)) for name, place in places.items()}
    first, second = outputs_and_gradients(run, arrays), outputs_and_gradients(run, changed)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name, place in places.items():
        assert not np.any(np.where(place, 0, first[f"gradient {name}"])), name
    assert not np.any(np.where(places["x"], 0, first["output 0"]))


@pytest.mark.parametrize("reverse", [False, True])
def test_extreme_decays(implementation, reverse):
    """Decays from exp(-1e3) to 1 - 1e-6, mixed: nothing is NaN, and all as the recurrence has it.

    Not in the GPU's kernels, but elsewhere the gradient of a decay is a difference of sums, whose rounding dt
    multiplies: hence the wider tolerance there.
    """
    arrays = arguments(replace(TINY, l=67))
    exponents = np.random.default_rng(2).uniform(-6, 3, size=arrays["dt"].shape)
    dt = (10.0**exponents).astype(np.float32)
    dt[:, 3], dt[:, 40:] = 0, 1e3
    arrays["dt"] = jnp.asarray(dt)
    arrays["A"] = jnp.asarray(np.full(arrays["A"].shape, -1, np.float32))
    looser = {} if implementation == "gpu" else {"gradient A": 1e-4, "gradient dt": 2e-5}
    assert_agrees(partial(ssd, reverse=reverse, chunk=16), implementation, arrays, looser=looser)


@pytest.mark.parametrize("reverse", [False, True])
def test_two_halves_with_carried_state_are_the_whole(any_implementation, reverse):
    arrays = arguments(replace(TINY, l=29, g=2))
    run = partial(ssd, reverse=reverse, chunk=8)

    def halves(h0, A, D, **sequences):
        left = {name: value[:, :11] for name, value in sequences.items()}
        right = {name: value[:, 11:] for name, value in sequences.items()}
        first, second = (right, left) if reverse else (left, right)
        y_first, state = run(**first, A=A, D=D, h0=h0, implementation=any_implementation)
        y_second, state = run(**second, A=A, D=D, h0=state, implementation=any_implementation)
        return jnp.concatenate([y_second, y_first] if reverse else [y_first, y_second], axis=1), state

    assert_agreement(halves, partial(run, implementation="reference"), arrays, TOLERANCE["float32"])


def test_dtypes_of_the_results(any_implementation):
    for dtype in DTYPES.values():
        y, h_last = jax.eval_shape(partial(ssd, implementation=any_implementation), **arguments(TINY, dtype))
        assert (y.dtype, h_last.dtype) == (dtype, jnp.float32)


def test_same_bits_twice(implementation):
    arrays = arguments(replace(SMALL, l=17, g=2), jnp.bfloat16)
    assert_same_bits_twice(partial(ssd, implementation=implementation), arrays)


def test_under_vmap_remat_and_scan(implementation):
    run = partial(ssd, chunk=5, implementation=implementation)
    arrays, others = (arguments(replace(TINY, l=5), seed=seed) for seed in (0, 3))

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: ssd(**arrays, implementation="reference"), stacked)

    def vectorised(**stacked):
        return jax.vmap(jax.checkpoint(lambda arrays: run(**arrays)))(stacked)

    def scanned(**stacked):
        return jax.lax.map(jax.checkpoint(lambda arrays: run(**arrays)), stacked)

    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), arrays, others)
    assert_agreement(vectorised, one_by_one, stacked, TOLERANCE["float32"])
    assert_agreement(scanned, one_by_one, stacked, TOLERANCE["float32"])


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        arrays = {
            name: jnp.asarray(np.asarray(value, np.float64)) for name, value in arguments(replace(TINY, l=67)).items()
        }
        run = partial(ssd, chunk=16, segments=packed(1, 67))
        assert_agreement(run, partial(run, implementation="reference"), arrays, 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "dtype", "reverse"),
    [
        (Shape(b=2, l=1111, h=6, p=64, n=128), "bfloat16", False),
        (Shape(b=2, l=1111, h=6, p=64, n=128), "bfloat16", True),
        (Shape(b=1, l=1000, h=4, p=64, n=128, g=2), "float32", False),
        (Shape(b=1, l=513, h=4, p=32, n=16, g=4), "float32", True),
        (Shape(b=1, l=777, h=4, p=128, n=256), "bfloat16", False),
        (Shape(b=1, l=300, h=2, p=96, n=80), "bfloat16", True),
        (Shape(b=1, l=8191, h=2, p=64, n=64), "bfloat16", False),
    ],
)
def test_large_shapes(shape, dtype, reverse):
    arrays = arguments(shape, DTYPES[dtype])
    seen = {"mask": gaps(shape.b, shape.l), "segments": packed(shape.b, shape.l, 200)} if reverse else {}
    assert_agrees(partial(ssd, reverse=reverse, **seen), "gpu", arrays, dtype)
    assert_same_bits_twice(partial(ssd, reverse=reverse, implementation="gpu", **seen), arrays)


def test_errors_name_the_value():
    arrays = arguments(SHAPES["tiny"])
    with pytest.raises(ValueError, match="'cuda' is unknown; pass one of 'reference', 'xla', 'gpu', 'tpu'"):
        ssd(**arrays, implementation="cuda")
    with pytest.raises(ValueError, match=r"dt has shape \(2, 13\), expected \(2, 13, 4\)"):
        ssd(**arrays | {"dt": arrays["dt"][..., 0]})
    with pytest.raises(ValueError, match="3 groups do not divide 4 heads"):
        ssd(**arguments(replace(TINY, h=4, g=3)))
    with pytest.raises(ValueError, match="chunk=0"):
        ssd(**arrays, chunk=0)
    with pytest.raises(ValueError, match="segments are float32, expected integers"):
        ssd(**arrays, segments=jnp.zeros((2, 13)))
    with pytest.raises(ValueError, match="mask is int32, expected bool"):
        ssd(**arrays, mask=jnp.zeros((2, 13), jnp.int32))
    with pytest.raises(ValueError, match=r"x has shape \(2, 13, 4, 3\), expected axes \(2 b l h p\)"):
        ssd_pair(**arrays)
