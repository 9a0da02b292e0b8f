"""`selective_scan`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import selective_scan
from dimba_kernels.selective_scan import xla
from dimba_kernels.selective_scan.arg_specs import SHAPES, arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, outputs_and_gradients

IMPLEMENTATIONS = ["xla"]
TINY = SHAPES["tiny"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def right_padding(l: int) -> jax.Array:
    return jnp.asarray(np.arange(l)[None] < np.array([[l], [l - l // 3]]))


def gaps(l: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).random((2, l)) < 0.6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("l", "chunk", "dtype"),
    [(1, None, "float32"), (7, 2, "float32"), (13, None, "float32"), (67, 3, "float32"), (67, 3, "bfloat16")],
)
def test_agrees_with_reference(implementation, reverse, l, chunk, dtype):
    arrays = arguments(replace(TINY, l=l), DTYPES[dtype])
    run = partial(selective_scan, reverse=reverse, chunk=chunk)
    assert_agreement(
        partial(run, implementation=implementation), partial(run, implementation="reference"), arrays, TOLERANCE[dtype]
    )


@pytest.mark.parametrize(
    ("form", "chunk", "reverse"), [("associative", 29, False), ("associative", 8, True), ("sequential", 1, False)]
)
def test_forms_of_a_chunk_agree_with_reference(form, chunk, reverse):
    arrays = arguments(replace(TINY, l=29))
    rest = {"mask": gaps(29), "reverse": reverse}

    def run(**arrays):
        return xla.selective_scan(**arrays, **rest, chunk=chunk, form=form)

    assert_agreement(run, partial(selective_scan, **rest, implementation="reference"), arrays, TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("mask", "reverse"), [(right_padding, True), (gaps, False)])
def test_masked_agrees_with_reference(implementation, reverse, mask):
    arrays = arguments(replace(TINY, l=29))
    run = partial(selective_scan, reverse=reverse, mask=mask(29), chunk=4)
    assert_agreement(
        partial(run, implementation=implementation), partial(run, implementation="reference"), arrays, 1e-5
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_optional_inputs_left_out(implementation):
    arrays = {name: value for name, value in arguments(TINY).items() if name in ("u", "dt", "A", "B", "C")}
    run = selective_scan
    assert_agreement(
        partial(run, implementation=implementation), partial(run, implementation="reference"), arrays, 1e-5
    )


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize(("mask", "reverse"), [(right_padding, True), (gaps, False)])
def test_masked_positions_do_not_leak(implementation, reverse, mask):
    """Nothing that stands at masked positions changes anything, NaN included, and no gradient reaches them."""
    l = 21
    valid = mask(l)
    run = partial(selective_scan, reverse=reverse, mask=valid, chunk=4, implementation=implementation)
    arrays = arguments(replace(TINY, l=l))
    sequences = ("u", "dt", "B", "C", "z")
    changed = arrays | {name: jnp.asarray(np.where(valid[..., None], arrays[name], np.nan)) for name in sequences}
    first, second = outputs_and_gradients(run, arrays), outputs_and_gradients(run, changed)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name in ("output 0", *(f"gradient {name}" for name in sequences)):
        assert not np.any(np.where(valid[..., None], 0, first[name])), name


@pytest.mark.parametrize(("form", "reverse"), [("sequential", False), ("associative", True)])
def test_extreme_decays(form, reverse):
    """Decays from exp(-1e3) to 1, mixed: the same as the recurrence, and nothing is NaN."""
    arrays = arguments(replace(TINY, l=29))
    exponents = np.random.default_rng(2).uniform(-8, 3, size=arrays["dt"].shape)
    dt = (10.0**exponents).astype(np.float32)
    dt[:, 3], dt[:, 20:] = 0, 1e3
    arrays["dt"] = jnp.asarray(dt)
    arrays["A"] = jnp.asarray(np.full(arrays["A"].shape, -1, np.float32))

    def run(**arrays):
        return xla.selective_scan(**arrays, mask=None, reverse=reverse, chunk=4, form=form)

    reference = partial(selective_scan, reverse=reverse, implementation="reference")
    assert_agreement(run, reference, arrays, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("implementation", "reverse"),
    [("reference", True), *((name, r) for name in IMPLEMENTATIONS for r in (False, True))],
)
def test_two_halves_with_carried_state_are_the_whole(implementation, reverse):
    arrays = arguments(replace(TINY, l=29))
    run = partial(selective_scan, reverse=reverse, chunk=4, implementation=implementation)

    def halves(h0, A, D, **sequences):
        left = {name: value[:, :11] for name, value in sequences.items()}
        right = {name: value[:, 11:] for name, value in sequences.items()}
        first, second = (right, left) if reverse else (left, right)
        y_first, state = run(**first, A=A, D=D, h0=h0)
        y_second, state = run(**second, A=A, D=D, h0=state)
        return jnp.concatenate([y_second, y_first] if reverse else [y_first, y_second], axis=1), state

    assert_agreement(halves, run, arrays, TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_dtypes_of_the_results(implementation):
    for dtype in DTYPES.values():
        y, h_last = jax.eval_shape(partial(selective_scan, implementation=implementation), **arguments(TINY, dtype))
        assert (y.dtype, h_last.dtype) == (dtype, jnp.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_vmap_and_remat(implementation):
    run = partial(selective_scan, chunk=5, implementation=implementation)
    arrays, others = arguments(TINY), arguments(TINY, seed=3)

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: run(**arrays), stacked)

    def vectorised(**stacked):
        return jax.vmap(jax.checkpoint(lambda arrays: run(**arrays)))(stacked)

    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), arrays, others)
    assert_agreement(vectorised, one_by_one, stacked, TOLERANCE["float32"])


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(np.asarray(value, np.float64)) for name, value in arguments(TINY).items()}
        run = partial(selective_scan, chunk=4)
        assert_agreement(run, partial(run, implementation="reference"), arrays, 1e-12)


def test_errors_name_the_value():
    arrays = arguments(TINY)
    with pytest.raises(NotImplementedError, match="no 'tpu' implementation; pass one of 'reference', 'xla'"):
        selective_scan(**arrays, implementation="tpu")
    with pytest.raises(ValueError, match=r"A has shape \(6,\), expected axes \(d n\)"):
        selective_scan(**arrays | {"A": arrays["D"]})
    with pytest.raises(ValueError, match=r"h0 has shape \(2, 4, 6\), expected \(2, 6, 4\)"):
        selective_scan(**arrays | {"h0": arrays["h0"].transpose(0, 2, 1)})
    with pytest.raises(ValueError, match="chunk=0"):
        selective_scan(**arrays, chunk=0)
