"""`causal_conv1d`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import causal_conv1d
from dimba_kernels.causal_conv1d.arg_specs import SHAPES, arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, outputs_and_gradients

IMPLEMENTATIONS = ["xla"]
TINY = SHAPES["tiny"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("l", "k", "activation", "dtype"),
    [
        (1, 4, "silu", "float32"),
        (7, 4, None, "float32"),
        (13, 1, "silu", "float32"),
        (67, 3, "silu", "float32"),
        (67, 4, "silu", "bfloat16"),
    ],
)
def test_agrees_with_reference(implementation, reverse, l, k, activation, dtype):
    arrays = arguments(replace(TINY, l=l, k=k), DTYPES[dtype])
    mask = jnp.asarray(np.random.default_rng(1).random((2, l)) < 0.7)
    run = partial(causal_conv1d, mask=mask if l in (7, 67) else None, reverse=reverse, activation=activation)
    reference = partial(run, implementation="reference")
    assert_agreement(partial(run, implementation=implementation), reference, arrays, TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_optional_inputs_left_out(implementation):
    arrays = {name: value for name, value in arguments(TINY).items() if name in ("x", "w")}
    run = causal_conv1d
    assert_agreement(
        partial(run, implementation=implementation), partial(run, implementation="reference"), arrays, 1e-5
    )


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_by_hand(implementation):
    """One channel, taps 1, 10, 100: digits show which position each tap has seen."""
    x, w = jnp.array([[[1.0], [2.0], [3.0], [4.0]]]), jnp.array([[1.0, 10.0, 100.0]])
    y, tail = causal_conv1d(x, w, tail=jnp.array([[[8.0], [9.0]]]), implementation=implementation)
    np.testing.assert_array_equal(y[0, :, 0], [198, 219, 321, 432])
    np.testing.assert_array_equal(tail[0, :, 0], [3, 4])
    y, tail = causal_conv1d(x, w, tail=jnp.array([[[8.0], [9.0]]]), reverse=True, implementation=implementation)
    np.testing.assert_array_equal(y[0, :, 0], [123, 234, 348, 489])
    np.testing.assert_array_equal(tail[0, :, 0], [1, 2])


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize("reverse", [False, True])
def test_masked_positions_do_not_leak(implementation, reverse):
    valid = jnp.array([[True] * 13, [True, False, True, True, False, False, True, True] + [False] * 5])
    run = partial(causal_conv1d, mask=valid, reverse=reverse, activation="silu", implementation=implementation)
    arrays = arguments(TINY)
    changed = arrays | {"x": jnp.where(valid[..., None], arrays["x"], 30.0)}
    first, second = outputs_and_gradients(run, arrays), outputs_and_gradients(run, changed)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    for name in ("output 0", "gradient x"):
        assert not np.any(np.where(valid[..., None], 0, first[name])), name


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 5])
def test_two_halves_with_carried_tail_are_the_whole(implementation, reverse, cut):
    run = partial(causal_conv1d, reverse=reverse, activation="silu", implementation=implementation)

    def halves(x, w, bias, tail):
        first, second = (x[:, cut:], x[:, :cut]) if reverse else (x[:, :cut], x[:, cut:])
        y_first, tail = run(first, w, bias, tail=tail)
        y_second, tail = run(second, w, bias, tail=tail)
        return jnp.concatenate([y_second, y_first] if reverse else [y_first, y_second], axis=1), tail

    assert_agreement(halves, run, arguments(TINY), TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_vmap_and_remat(implementation):
    run = partial(causal_conv1d, activation="silu", implementation=implementation)
    arrays, others = arguments(TINY), arguments(TINY, seed=3)

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: run(**arrays), stacked)

    def vectorised(**stacked):
        return jax.vmap(jax.checkpoint(lambda arrays: run(**arrays)))(stacked)

    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), arrays, others)
    assert_agreement(vectorised, one_by_one, stacked, TOLERANCE["float32"])


def test_errors_name_the_value():
    arrays = arguments(TINY)
    with pytest.raises(NotImplementedError, match="no 'gpu' implementation"):
        causal_conv1d(**arrays, implementation="gpu")
    with pytest.raises(ValueError, match=r"tail has shape \(2, 13, 6\), expected \(2, 3, 6\)"):
        causal_conv1d(**arrays | {"tail": arrays["x"]})
    with pytest.raises(ValueError, match="activation='relu' is unknown"):
        causal_conv1d(**arrays, activation="relu")
