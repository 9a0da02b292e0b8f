"""`modulated_rms_norm`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import modulated_rms_norm
from dimba_kernels.modulated_norm.arg_specs import SHAPES, Shape, arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, assert_same_bits_twice, outputs_and_gradients

TINY = SHAPES["tiny"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
CASES = {
    "branch": TINY,
    "no_branch": replace(TINY, branch=False),
    "shared_modulation": replace(TINY, rows=1),
    "shared_modulation_no_branch": replace(TINY, rows=1, branch=False),
    "power_of_two": Shape(b=1, l=3, d=64),
    "one_position": Shape(b=3, l=1, d=20),
    "more_positions_than_programs": Shape(b=2, l=11, d=12),  # so that a program adds up several positions' gradients
}


@pytest.fixture(autouse=True)
def _no_tpu_kernel(request):
    if "tpu" in getattr(getattr(request.node, "callspec", None), "params", {}).values():
        pytest.skip("there is no kernel for TPUs")


def run_of(implementation: str, **options):
    return partial(modulated_rms_norm, implementation=implementation, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(implementation, case, dtype, monkeypatch):
    if case == "more_positions_than_programs" and implementation == "gpu":
        monkeypatch.setattr("dimba_kernels.modulated_norm.gpu._PROGRAMS", 8)
    arrays = arguments(CASES[case], DTYPES[dtype])
    run = run_of(implementation, dtype=DTYPES[dtype])
    assert_agreement(run, run_of("reference"), arrays, TOLERANCE[dtype], {"output 0": 1e-6})


@pytest.mark.parametrize("left_out", [("gate",), ("scale", "shift"), ("shift", "gate"), ("scale",)])
def test_what_is_left_out_changes_nothing(implementation, left_out):
    arrays = {name: value for name, value in arguments(TINY).items() if name not in left_out}
    assert_agreement(run_of(implementation), run_of("reference"), arrays, TOLERANCE["float32"])


def test_a_value_for_each_position_is_for_xla_alone():
    arrays = arguments(TINY)
    arrays["scale"] = arrays["scale"] * jnp.arange(1.0, 6.0)[:, None]
    assert_agreement(run_of("xla"), run_of("reference"), arrays, TOLERANCE["float32"])
    pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
    with pytest.raises(NotImplementedError, match="scale has a value for each of 5 positions"):
        modulated_rms_norm(**arrays, implementation="gpu")


def test_what_goes_on_is_what_is_normed(any_implementation):
    """1 + .002 is 1 in bfloat16: the norm of four ones, not of 1.002 and three ones."""
    h = jnp.ones((1, 1, 4), jnp.bfloat16)
    branch = jnp.array([2e-3, 0, 0, 0], jnp.bfloat16).reshape(1, 1, 4)
    options = dict(branch=branch, dtype=jnp.float32, epsilon=0.0, implementation=any_implementation)
    total, out = modulated_rms_norm(h, jnp.ones(4), **options)
    np.testing.assert_array_equal(np.asarray(total, np.float32), 1.0)
    np.testing.assert_allclose(out, 1.0, rtol=1e-6)


def test_positions_that_are_not_there_add_nothing(implementation, monkeypatch):
    """Eleven positions in turns of four, and no epsilon that keeps an empty one from being NaN."""
    if implementation == "gpu":
        monkeypatch.setattr("dimba_kernels.modulated_norm.gpu._PROGRAMS", 8)
    runs = (run_of(name, epsilon=0.0) for name in (implementation, "reference"))
    assert_agreement(*runs, arguments(Shape(b=2, l=11, d=12)), TOLERANCE["float32"])


def test_by_hand(any_implementation):
    """3 + 2 * .5 and -2 + 3 * 2: a total of 4 and 4, whose root mean square is 4."""
    one = {"h": [3.0, -2.0], "branch": [0.5, 2.0], "gate": [2.0, 3.0], "scale": [0.0, 1.0], "shift": [0.0, 7.0]}
    arrays = {name: jnp.array(values).reshape(1, 1, 2) for name, values in one.items()}
    total, out = run_of(any_implementation, epsilon=0.0)(weight=jnp.array([5.0, 1.0]), **arrays)
    np.testing.assert_allclose(total[0, 0], [4.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(out[0, 0], [5.0, 9.0], rtol=1e-6)


def test_rows_and_positions_are_apart(any_implementation):
    """What one position holds, NaN included, reaches no other one."""
    arrays = arguments(Shape(b=2, l=3, d=4))
    changed = arrays | {"h": arrays["h"].at[1, 2].set(jnp.nan)}
    first, second = (outputs_and_gradients(run_of(any_implementation), values) for values in (arrays, changed))
    differ = np.zeros((2, 3, 4), bool)
    differ[1, 2] = True
    for name in ("output 0", "output 1", "gradient h"):
        np.testing.assert_array_equal(np.isnan(second[name]), differ)
        np.testing.assert_array_equal(first[name][~differ], second[name][~differ])
    for name in ("scale", "gate"):
        np.testing.assert_array_equal(first[f"gradient {name}"][0], second[f"gradient {name}"][0])


def test_same_bits_twice(implementation):
    assert_same_bits_twice(run_of(implementation, dtype=jnp.bfloat16), arguments(TINY, jnp.bfloat16))


@pytest.mark.parametrize("way", ["vmap", "scan"])
def test_under_vmap_remat_and_scan(implementation, way):
    arrays, others = (arguments(TINY, seed=seed) for seed in (0, 3))
    stacked = {name: jnp.stack([arrays[name], others[name]]) for name in arrays}
    one = jax.checkpoint(lambda arrays: run_of(implementation)(**arrays))

    def all_of_them(**stacked):
        return jax.vmap(one)(stacked) if way == "vmap" else jax.lax.map(one, stacked)

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: run_of("reference")(**arrays), stacked)

    assert_agreement(all_of_them, one_by_one, stacked, TOLERANCE["float32"])


def test_bad_arguments_are_named():
    arrays = arguments(TINY)
    with pytest.raises(ValueError, match=r"modulated_rms_norm: weight has shape \(23,\), expected \(24,\)"):
        modulated_rms_norm(**arrays | {"weight": arrays["weight"][:23]})
    with pytest.raises(ValueError, match=r"modulated_rms_norm: scale has shape \(2, 24\), expected \(2 or 1, 5 or 1"):
        modulated_rms_norm(**arrays | {"scale": arrays["scale"][:, 0]})
    with pytest.raises(ValueError, match=r"modulated_rms_norm: shift has shape \(2, 3, 24\)"):
        modulated_rms_norm(**arrays | {"shift": jnp.zeros((2, 3, 24))})
    with pytest.raises(ValueError, match="modulated_rms_norm: a gate without a branch"):
        modulated_rms_norm(**arrays | {"branch": None})
    with pytest.raises(ValueError, match="modulated_rms_norm: dtype=int32, expected a floating one"):
        modulated_rms_norm(**arrays, dtype=jnp.int32)
    with pytest.raises(NotImplementedError, match="no kernel for TPUs|runs on a TPU"):
        modulated_rms_norm(**arrays, implementation="tpu")
