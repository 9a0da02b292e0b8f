"""`ssd` and `ssd_bidirectional`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import ssd, ssd_bidirectional
from dimba_kernels.ssd.arg_specs import SHAPES, arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, outputs_and_gradients

IMPLEMENTATIONS = ["xla"]
TINY = SHAPES["tiny"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# A's gradient sums terms of either sign over the whole sequence. Their rounding stays when they cancel: over 48 draws
# its relative error had a median of .0025 and a maximum of .019, while that of dt, term by term, stayed below .0035.
LOOSER = {"float32": {}, "bfloat16": {"gradient A": 3e-2}}


def right_padding(l: int) -> jax.Array:
    return jnp.asarray(np.arange(l)[None] < np.array([[l], [l - l // 3]]))


def gaps(l: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).random((2, l)) < 0.6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("l", "g", "chunk", "dtype"),
    [
        (1, 1, 64, "float32"),
        (7, 2, 64, "float32"),
        (13, 1, 5, "float32"),
        (67, 2, 16, "float32"),
        (13, 1, 64, "bfloat16"),
        (67, 2, 16, "bfloat16"),
    ],
)
def test_agrees_with_reference(implementation, reverse, l, g, chunk, dtype):
    arrays = arguments(replace(TINY, l=l, g=g, p=16, n=16), DTYPES[dtype])
    run = partial(ssd, reverse=reverse, chunk=chunk)
    actual, reference = (partial(run, implementation=name) for name in (implementation, "reference"))
    assert_agreement(actual, reference, arrays, TOLERANCE[dtype], looser=LOOSER[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True])
def test_many_chunks_agree_with_reference(implementation, reverse):
    """34 chunks: the states between them pass through blocks of blocks."""
    arrays = arguments(replace(TINY, l=67, g=2))
    run = partial(ssd, reverse=reverse, chunk=2, implementation=implementation)
    assert_agreement(run, partial(run, implementation="reference"), arrays, TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("mask", "reverse"), [(right_padding, True), (gaps, False)])
def test_masked_agrees_with_reference(implementation, reverse, mask):
    arrays = arguments(replace(TINY, l=67, g=2))
    run = partial(ssd, reverse=reverse, chunk=16, mask=mask(67))
    assert_agreement(
        partial(run, implementation=implementation), partial(run, implementation="reference"), arrays, 1e-5
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_optional_inputs_left_out(implementation):
    arrays = arguments(replace(TINY, l=13))
    arrays = {name: arrays[name] for name in ("x", "dt", "A", "B", "C")}
    reference = partial(ssd, implementation="reference")
    for chunk in (4, 64):
        run = partial(ssd, chunk=chunk, implementation=implementation)
        assert_agreement(run, reference, arrays, TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize(("mask", "reverse"), [(right_padding, True), (gaps, False)])
def test_masked_positions_do_not_leak(implementation, reverse, mask):
    """Nothing that stands at masked positions changes anything, NaN included, and no gradient reaches them."""
    l = 21
    valid = mask(l)
    run = partial(ssd, reverse=reverse, chunk=8, mask=valid, implementation=implementation)
    arrays = arguments(replace(TINY, l=l))
    places = {name: valid.reshape(2, l, *[1] * (arrays[name].ndim - 2)) for name in ("x", "dt", "B", "C")}
    changed = arrays | {name: jnp.asarray(np.where(place, arrays[name], np.nan)) for name, place in places.items()}
    first, second = outputs_and_gradients(run, arrays), outputs_and_gradients(run, changed)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name, place in places.items():
        assert not np.any(np.where(place, 0, first[f"gradient {name}"])), name
    assert not np.any(np.where(places["x"], 0, first["output 0"]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True])
def test_extreme_decays(implementation, reverse):
    """Decays from exp(-1e3) to 1, mixed: nothing is NaN, and all as the recurrence has it.

    The gradient of a decay is a difference of sums, whose rounding dt multiplies: hence the wider tolerance.
    """
    arrays = arguments(replace(TINY, l=67))
    exponents = np.random.default_rng(2).uniform(-8, 3, size=arrays["dt"].shape)
    dt = (10.0**exponents).astype(np.float32)
    dt[:, 3], dt[:, 40:] = 0, 1e3
    arrays["dt"] = jnp.asarray(dt)
    arrays["A"] = jnp.asarray(np.full(arrays["A"].shape, -1, np.float32))
    run = partial(ssd, reverse=reverse, chunk=16)
    assert_agreement(
        partial(run, implementation=implementation), partial(run, implementation="reference"), arrays, 1e-4
    )


@pytest.mark.parametrize(
    ("implementation", "reverse"),
    [("reference", True), *((name, r) for name in IMPLEMENTATIONS for r in (False, True))],
)
def test_two_halves_with_carried_state_are_the_whole(implementation, reverse):
    arrays = arguments(replace(TINY, l=29, g=2))
    run = partial(ssd, reverse=reverse, chunk=8, implementation=implementation)

    def halves(h0, A, D, **sequences):
        left = {name: value[:, :11] for name, value in sequences.items()}
        right = {name: value[:, 11:] for name, value in sequences.items()}
        first, second = (right, left) if reverse else (left, right)
        y_first, state = run(**first, A=A, D=D, h0=h0)
        y_second, state = run(**second, A=A, D=D, h0=state)
        return jnp.concatenate([y_second, y_first] if reverse else [y_first, y_second], axis=1), state

    assert_agreement(halves, run, arrays, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("implementation", "chunk"), [("reference", 8), *((name, c) for name in IMPLEMENTATIONS for c in (8, 64))]
)
def test_bidirectional_is_the_sum_of_both_directions(implementation, chunk):
    arrays = arguments(replace(TINY, l=29, g=2))
    del arrays["h0"]
    mask = gaps(29)

    def both(D, **rest):
        forward, _ = ssd(**rest, D=D, mask=mask, implementation="reference")
        backward, _ = ssd(**rest, mask=mask, reverse=True, implementation="reference")
        return forward + backward

    run = partial(ssd_bidirectional, mask=mask, chunk=chunk, implementation=implementation)
    assert_agreement(run, both, arrays, TOLERANCE["float32"])


def test_bidirectional_in_bfloat16():
    arrays = arguments(replace(TINY, l=29, g=2, p=16, n=16), jnp.bfloat16)
    del arrays["h0"]
    run = partial(ssd_bidirectional, chunk=8)
    assert_agreement(run, partial(run, implementation="reference"), arrays, 1e-2, looser=LOOSER["bfloat16"])


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_dtypes_of_the_results(implementation):
    for dtype in DTYPES.values():
        y, h_last = jax.eval_shape(partial(ssd, implementation=implementation), **arguments(TINY, dtype))
        assert (y.dtype, h_last.dtype) == (dtype, jnp.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_vmap_and_remat(implementation):
    run = partial(ssd, chunk=5, implementation=implementation)
    arrays, others = arguments(TINY), arguments(TINY, seed=3)

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: run(**arrays), stacked)

    def vectorised(**stacked):
        return jax.vmap(jax.checkpoint(lambda arrays: run(**arrays)))(stacked)

    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), arrays, others)
    assert_agreement(vectorised, one_by_one, stacked, TOLERANCE["float32"])


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        arrays = {
            name: jnp.asarray(np.asarray(value, np.float64)) for name, value in arguments(replace(TINY, l=67)).items()
        }
        run = partial(ssd, chunk=16)
        assert_agreement(run, partial(run, implementation="reference"), arrays, 1e-12)


def test_errors_name_the_value():
    arrays = arguments(TINY)
    with pytest.raises(NotImplementedError, match="no 'gpu' implementation; pass one of 'reference', 'xla'"):
        ssd(**arrays, implementation="gpu")
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        ssd(**arrays, implementation="cuda")
    with pytest.raises(ValueError, match=r"dt has shape \(2, 13\), expected \(2, 13, 4\)"):
        ssd(**arrays | {"dt": arrays["dt"][..., 0]})
    with pytest.raises(ValueError, match="3 groups do not divide 4 heads"):
        ssd(**arguments(replace(TINY, g=3)))
    with pytest.raises(ValueError, match="chunk=0"):
        ssd(**arrays, chunk=0)
