"""`gated_rms_norm`: every implementation against the reference, and what the definition promises."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import gated_rms_norm
from dimba_kernels.gated_norm.arg_specs import SHAPES, Shape, arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, assert_same_bits_twice, outputs_and_gradients

TINY = SHAPES["tiny"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
CASES = {
    "pair": (TINY, 1),
    "one_scan": (Shape(1, 3, 2, 40), 1),
    "power_of_two": (Shape(2, 1, 3, 64), 1),
    "groups": (Shape(2, 2, 3, 24), 3),
    "groups_of_one_feature": (Shape(1, 1, 2, 4), 4),
    "more_rows_than_programs": (Shape(2, 2, 10, 3), 1),  # so that a program adds up several rows' gradients
}


@pytest.fixture(autouse=True)
def _no_tpu_kernel(request):
    if "tpu" in getattr(getattr(request.node, "callspec", None), "params", {}).values():
        pytest.skip("there is no kernel for TPUs")


def run_of(implementation: str, groups: int = 1):
    return partial(gated_rms_norm, groups=groups, implementation=implementation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(implementation, case, dtype, monkeypatch):
    shape, groups = CASES[case]
    if case == "more_rows_than_programs" and implementation == "gpu":
        monkeypatch.setattr("dimba_kernels.gated_norm.gpu._PROGRAMS", 12)
    arrays = arguments(shape, DTYPES[dtype])
    assert_agreement(run_of(implementation, groups), run_of("reference", groups), arrays, TOLERANCE[dtype])


def test_by_hand(any_implementation):
    """Gates of ln 2 and 0: silu(ln 2) = 2/3 ln 2, silu(0) = 0."""
    y = jnp.array([3.0, 4.0]).reshape(2, 1, 1, 1) * jnp.ones(2)
    z = jnp.log(jnp.array([[[2.0, 1.0, 1.0, 2.0]]]))
    out = gated_rms_norm(y, z, jnp.array([[1.0, 5.0], [1.0, 7.0]]), epsilon=0.0, implementation=any_implementation)
    np.testing.assert_allclose(out[0, 0], [np.sqrt(2), 0.0, 0.0, 7 * np.sqrt(2)], rtol=1e-5)


def test_scans_and_rows_are_apart(any_implementation):
    """What one scan's row holds, NaN included, reaches no other one, and no other one's gradient."""
    arrays = arguments(Shape(2, 1, 3, 4))
    changed = arrays | {"y": arrays["y"].at[1, 0, 2].set(jnp.nan)}
    first, second = (outputs_and_gradients(run_of(any_implementation), values) for values in (arrays, changed))
    differ = np.array([[[False] * 4 + [False] * 4, [False] * 8, [False] * 4 + [True] * 4]])
    np.testing.assert_array_equal(np.isnan(second["output 0"]), differ)
    np.testing.assert_array_equal(first["output 0"][~differ], second["output 0"][~differ])
    np.testing.assert_array_equal(first["gradient y"][0], second["gradient y"][0])
    np.testing.assert_array_equal(first["gradient scale"][0], second["gradient scale"][0])


def test_same_bits_twice(implementation):
    assert_same_bits_twice(run_of(implementation), arguments(TINY, jnp.bfloat16))


def test_under_vmap_remat_and_scan(implementation):
    arrays, others = (arguments(TINY, seed=seed) for seed in (0, 3))
    stacked = {name: jnp.stack([arrays[name], others[name]]) for name in arrays}

    def vectorised(**stacked):
        return jax.vmap(jax.checkpoint(lambda arrays: run_of(implementation)(**arrays)))(stacked)

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: run_of("reference")(**arrays), stacked)

    assert_agreement(vectorised, one_by_one, stacked, TOLERANCE["float32"])


def test_bad_arguments_are_named():
    arrays = arguments(TINY)
    with pytest.raises(ValueError, match=r"gated_rms_norm: z has shape \(2, 5, 24\), expected \(2, 5, 48\)"):
        gated_rms_norm(**arrays | {"z": arrays["z"][..., :24]})
    with pytest.raises(ValueError, match="gated_rms_norm: 5 groups do not divide the 24 features"):
        gated_rms_norm(**arrays, groups=5)
    with pytest.raises(NotImplementedError, match="no kernel for TPUs|runs on a TPU"):
        gated_rms_norm(**arrays, implementation="tpu")
