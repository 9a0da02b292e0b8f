"""`selective_scan`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import selective_scan
from dimba_kernels.selective_scan import xla
from dimba_kernels.selective_scan.arg_specs import SHAPES, Shape, arguments, raw_arguments
from dimba_kernels.testing import (
    TOLERANCE,
    assert_agreement,
    assert_same_bits_twice,
    gaps,
    outputs_and_gradients,
    packed,
    right_padding,
)

TINY = replace(SHAPES["tiny"], b=1)  # the time of an interpreter is in the number of programs
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NOTHING_ELSE = dict(mask=None, segments=None, dt_bias=None, dt_softplus=False)
# A's gradient sums terms of either sign over the whole sequence, and their rounding stays when they cancel
LOOSER = {"float32": {}, "bfloat16": {"gradient A": 3e-2}}


def assert_agrees(run, implementation, arrays, dtype="float32"):
    actual, reference = (partial(run, implementation=name) for name in (implementation, "reference"))
    assert_agreement(actual, reference, arrays, TOLERANCE[dtype], looser=LOOSER[dtype])


class Case(NamedTuple):
    l: int
    b: int = 1
    dtype: str = "float32"
    reverse: bool = False
    chunk: int | None = None
    mask: Callable[[int, int], jax.Array] | None = None
    segments: bool = False
    raw: bool = False
    without: tuple[str, ...] = ()


# every kind of argument in both directions and in both dtypes, not every product of them
CASES = {
    "one_position": Case(1),
    "few_arguments": Case(13, reverse=True, without=("D", "z", "h0")),
    "chunks": Case(67, chunk=3),
    "chunks_of_segments": Case(67, reverse=True, segments=True, chunk=3),
    "all_at_once": Case(29, mask=gaps, segments=True, raw=True, chunk=4),
    "right_padding": Case(29, b=2, reverse=True, mask=right_padding, raw=True, chunk=4),
    "bfloat16": Case(67, dtype="bfloat16", reverse=True, mask=gaps, segments=True, raw=True, chunk=4),
    "bfloat16_padded": Case(67, b=2, dtype="bfloat16", mask=right_padding, chunk=3),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(implementation, case):
    l, b, dtype, reverse, chunk, mask, segments, raw, without = CASES[case]
    arrays = (raw_arguments if raw else arguments)(replace(TINY, b=b, l=l), DTYPES[dtype])
    for name in without:
        del arrays[name]
    seen = dict(mask=mask and mask(b, l), segments=packed(b, l) if segments else None)
    run = partial(selective_scan, reverse=reverse, chunk=chunk, dt_softplus=raw, **seen)
    assert_agrees(run, implementation, arrays, dtype)


@pytest.mark.parametrize("seed", range(3))
def test_random_shapes_agree_with_reference(implementation, seed):
    rng = np.random.default_rng(seed)
    b, l, d, n = (int(rng.integers(1, most + 1)) for most in (3, 60, 20, 20))
    arrays = (raw_arguments if seed == 0 else arguments)(Shape(b, l, d, n), seed=seed)
    for name in ("D", "z")[: seed % 3]:
        del arrays[name]
    mask, segments = gaps(b, l, seed) if seed != 1 else None, packed(b, l, 20, seed) if seed > 0 else None
    rest = dict(mask=mask, segments=segments, dt_softplus=seed == 0, chunk=int(rng.integers(1, 33)))
    assert_agrees(partial(selective_scan, reverse=seed in (1, 2), **rest), implementation, arrays)


@pytest.mark.parametrize(
    ("form", "chunk", "reverse"), [("associative", 29, False), ("associative", 8, True), ("sequential", 1, False)]
)
def test_forms_of_a_chunk_agree_with_reference(form, chunk, reverse):
    arrays = arguments(replace(TINY, l=29))
    rest = NOTHING_ELSE | {"mask": gaps(1, 29), "segments": packed(1, 29), "reverse": reverse}

    def run(**arrays):
        return xla.selective_scan(**arrays, **rest, chunk=chunk, form=form)

    def reference(**arrays):
        return selective_scan(**arrays, **rest, implementation="reference")

    assert_agreement(run, reference, arrays, TOLERANCE["float32"])


def test_steps_made_inside_are_softplus_of_the_sum(any_implementation):
    arrays = raw_arguments(TINY)
    made = arrays | {"dt": jax.nn.softplus(arrays["dt"] + arrays["dt_bias"])}
    del made["dt_bias"]
    run = partial(selective_scan, implementation=any_implementation)
    y = jax.jit(partial(run, dt_softplus=True))(**arrays)[0]
    np.testing.assert_allclose(y, jax.jit(run)(**made)[0], rtol=1e-4, atol=1e-5)


def test_segments_are_sequences_of_their_own(any_implementation):
    arrays = arguments(replace(TINY, l=21))
    run = jax.jit(partial(selective_scan, chunk=8, implementation=any_implementation))
    whole, h_last = run(**arrays, segments=jnp.asarray([[0] * 9 + [1] * 12]))
    parts = [
        run(**{k: v[:, cut] if k in ("u", "dt", "B", "C", "z") else v for k, v in arrays.items()} | {"h0": h0})
        for cut, h0 in ((slice(9), arrays["h0"]), (slice(9, 21), None))
    ]
    np.testing.assert_allclose(whole, jnp.concatenate([y for y, _ in parts], axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(h_last, parts[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mask", "reverse"), [(right_padding, True), (gaps, False)])
def test_masked_positions_do_not_leak(any_implementation, reverse, mask):
    """Nothing that stands at masked positions changes anything, NaN included, and no gradient reaches them."""
    l = 13
    valid = mask(2, l)
    run = partial(selective_scan, reverse=reverse, mask=valid, chunk=4, implementation=any_implementation)
    run = partial(run, dt_softplus=reverse)
    arrays = (raw_arguments if reverse else arguments)(replace(TINY, b=2, l=l))
    sequences = ("u", "dt", "B", "C", "z")
    changed = arrays | {name: jnp.asarray(np.where(valid[..., None], arrays[name], np.nan)) for name in sequences}
    first, second = outputs_and_gradients(run, arrays), outputs_and_gradients(run, changed)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name in ("output 0", *(f"gradient {name}" for name in sequences)):
        assert not np.any(np.where(valid[..., None], 0, first[name])), name


def extreme_arguments() -> dict[str, jax.Array]:
    """A dt from -1e3 to -1e-6, mixed, and zero."""
    arrays = arguments(replace(TINY, l=29))
    exponents = np.random.default_rng(2).uniform(-6, 3, size=arrays["dt"].shape)
    dt = (10.0**exponents).astype(np.float32)
    dt[:, 3], dt[:, 20:] = 0, 1e3
    return arrays | {"dt": jnp.asarray(dt), "A": jnp.full(arrays["A"].shape, -1, jnp.float32)}


@pytest.mark.parametrize("reverse", [False, True])
def test_extreme_decays(implementation, reverse):
    """Decays from exp(-1e3) to 1 - 1e-6, mixed: the same as the recurrence, and nothing is NaN."""
    assert_agrees(partial(selective_scan, reverse=reverse, chunk=4), implementation, extreme_arguments())


@pytest.mark.parametrize(("form", "reverse"), [("sequential", False), ("associative", True)])
def test_extreme_decays_in_both_forms(form, reverse):
    def run(**arrays):
        return xla.selective_scan(**arrays, **NOTHING_ELSE, reverse=reverse, chunk=4, form=form)

    reference = partial(selective_scan, reverse=reverse, implementation="reference")
    assert_agreement(run, reference, extreme_arguments(), TOLERANCE["float32"])


@pytest.mark.parametrize("reverse", [False, True])
def test_two_halves_with_carried_state_are_the_whole(any_implementation, reverse):
    arrays = arguments(replace(TINY, l=29))
    run = partial(selective_scan, reverse=reverse, chunk=4)

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
        y, h_last = jax.eval_shape(partial(selective_scan, implementation=any_implementation), **arguments(TINY, dtype))
        assert (y.dtype, h_last.dtype) == (dtype, jnp.float32)


def test_same_bits_twice(implementation):
    arrays = raw_arguments(replace(TINY, l=17), jnp.bfloat16)
    assert_same_bits_twice(partial(selective_scan, dt_softplus=True, implementation=implementation), arrays)


def test_under_vmap_remat_and_scan(implementation):
    run = partial(selective_scan, chunk=5, implementation=implementation)
    arrays, others = (arguments(replace(TINY, l=5), seed=seed) for seed in (0, 3))

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: selective_scan(**arrays, implementation="reference"), stacked)

    def vectorised(**stacked):
        return jax.vmap(jax.checkpoint(lambda arrays: run(**arrays)))(stacked)

    def scanned(**stacked):
        return jax.lax.map(jax.checkpoint(lambda arrays: run(**arrays)), stacked)

    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), arrays, others)
    assert_agreement(vectorised, one_by_one, stacked, TOLERANCE["float32"])
    assert_agreement(scanned, one_by_one, stacked, TOLERANCE["float32"])


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(np.asarray(value, np.float64)) for name, value in raw_arguments(TINY).items()}
        run = partial(selective_scan, chunk=4, dt_softplus=True, segments=packed(1, 13))
        assert_agreement(run, partial(run, implementation="reference"), arrays, 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "dtype", "reverse"),
    [
        (Shape(b=2, l=1111, d=200, n=16), "bfloat16", False),
        (Shape(b=2, l=1111, d=200, n=16), "bfloat16", True),
        (Shape(b=1, l=1000, d=96, n=16), "float32", True),
        (Shape(b=1, l=513, d=70, n=64), "bfloat16", False),
        (Shape(b=3, l=128, d=1536, n=16), "bfloat16", True),
        (Shape(b=1, l=8191, d=64, n=16), "bfloat16", False),
        (Shape(b=1, l=8191, d=64, n=16), "bfloat16", True),
        (Shape(b=1, l=300, d=33, n=5), "float32", False),
    ],
)
def test_large_shapes(shape, dtype, reverse):
    arrays = (raw_arguments if reverse else arguments)(shape, DTYPES[dtype])
    seen = {"mask": gaps(shape.b, shape.l), "segments": packed(shape.b, shape.l, 200)} if reverse else {}
    run = partial(selective_scan, reverse=reverse, dt_softplus=reverse, **seen)
    assert_agrees(run, "gpu", arrays, dtype)
    assert_same_bits_twice(partial(run, implementation="gpu"), arrays)


def test_errors_name_the_value():
    arrays = arguments(SHAPES["tiny"])
    with pytest.raises(ValueError, match=r"A has shape \(6,\), expected axes \(d n\)"):
        selective_scan(**arrays | {"A": arrays["D"]})
    with pytest.raises(ValueError, match=r"h0 has shape \(2, 4, 6\), expected \(2, 6, 4\)"):
        selective_scan(**arrays | {"h0": arrays["h0"].transpose(0, 2, 1)})
    with pytest.raises(ValueError, match=r"dt_bias has shape \(6, 4\), expected \(6,\)"):
        selective_scan(**arrays | {"dt_bias": arrays["A"]})
    with pytest.raises(ValueError, match="chunk=0"):
        selective_scan(**arrays, chunk=0)
