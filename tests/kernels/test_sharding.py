"""Operations split over eight virtual devices: the same outputs and gradients as on one, and no sum too many."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import (
    causal_conv1d,
    gated_rms_norm,
    modulated_rms_norm,
    selective_scan,
    sharding,
    ssd,
    ssd_bidirectional,
    ssd_pair,
)
from dimba_kernels.causal_conv1d import arg_specs as conv
from dimba_kernels.gated_norm import arg_specs as norm
from dimba_kernels.modulated_norm import arg_specs as modulated
from dimba_kernels.selective_scan import arg_specs as s6
from dimba_kernels.ssd import arg_specs as duality
from dimba_kernels.testing import assert_agreement, gaps, packed
from jax.sharding import PartitionSpec

if jax.device_count() < 8:
    pytest.skip("needs eight devices", allow_module_level=True)

MESH = jax.make_mesh((2, 2, 2), ("data", "model", "rest"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
FOUR = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
SSD = duality.Shape(b=2, l=9, h=8, p=3, n=5)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no Triton: install the `gpu` extra"
)


def split(run, mesh=MESH, heads="model"):
    def inside(**arrays):
        with sharding(mesh, batch="data", heads=heads):
            return run(**arrays)

    return inside


def assert_unchanged(run, arrays, mesh=MESH, heads="model", implementation="xla"):
    whole = partial(run, implementation="reference")
    assert_agreement(split(partial(run, implementation=implementation), mesh, heads), whole, arrays, 1e-5)


# two groups a device, one, all heads of a device in one of the groups it has, one group for all, nothing to split
@pytest.mark.parametrize(
    ("mesh", "g", "heads"),
    [(MESH, 4, "model"), (FOUR, 2, "model"), (FOUR, 1, "model"), (MESH, 4, ("model", "rest")), (MESH, 2, None)],
)
def test_ssd_split_by_rows_heads_and_groups(mesh, g, heads):
    run = partial(ssd, chunk=4, mask=gaps(2, 9), segments=packed(2, 9), reverse=g == 2)
    assert_unchanged(run, duality.arguments(replace(SSD, g=g)), mesh, heads)


def test_both_forms_of_two_directions():
    arrays = duality.arguments(replace(SSD, g=2))
    del arrays["h0"]
    assert_unchanged(partial(ssd_bidirectional, mask=gaps(2, 9)), arrays, FOUR)
    assert_unchanged(partial(ssd_pair, segments=packed(2, 9)), duality.pair_arguments(replace(SSD, g=2)), FOUR)


def test_channels_are_split():
    arrays = s6.raw_arguments(s6.Shape(b=2, l=9, d=8, n=4))
    assert_unchanged(partial(selective_scan, dt_softplus=True, mask=gaps(2, 9)), arrays)
    assert_unchanged(partial(causal_conv1d, segments=packed(2, 9)), conv.arguments(conv.Shape(b=2, l=9, d=8)))


@pytest.mark.parametrize(("b", "h", "g"), [(3, 8, 1), (2, 6, 1), (2, 12, 3)])
def test_what_does_not_divide_stays_whole(b, h, g):
    arrays = duality.arguments(replace(SSD, b=b, h=h, g=g))
    assert_unchanged(partial(ssd, chunk=4), arrays, FOUR)


@needs_triton
def test_triton_kernels_are_split():
    assert_unchanged(causal_conv1d, conv.arguments(conv.Shape(b=2, l=9, d=8)), implementation="gpu")
    assert_unchanged(ssd, duality.arguments(replace(SSD, h=4, g=2)), implementation="gpu")


@needs_triton
def test_a_pointwise_operation_needs_no_other_part_of_the_sequence():
    arrays = norm.arguments(norm.Shape(r=2, b=2, l=8, i=6))
    run = partial(gated_rms_norm, groups=2)
    whole = partial(run, implementation="reference")
    mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with sharding(mesh, batch="data", sequence="sequence"):
        assert "shard_map" in str(jax.make_jaxpr(partial(run, implementation="gpu"))(**arrays))
        assert_agreement(partial(run, implementation="gpu"), whole, arrays, 1e-5)


@needs_triton
@pytest.mark.parametrize("rows", [2, 1])
def test_a_modulated_norm_is_split_like_the_stream(rows):
    """One modulation for all rows gets the gradients of all devices."""
    arrays = modulated.arguments(modulated.Shape(b=2, l=8, d=6, rows=rows))
    mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    run, whole = (partial(modulated_rms_norm, implementation=name) for name in ("gpu", "reference"))
    with sharding(mesh, batch="data", sequence="sequence"):
        assert "shard_map" in str(jax.make_jaxpr(lambda arrays: run(**arrays))(arrays))
        assert_agreement(run, whole, arrays, 1e-5)
    assert_unchanged(modulated_rms_norm, arrays, FOUR, implementation=None)  # devices that split heads: by XLA


def test_a_norm_over_split_features_is_left_to_xla():
    """A mean over features of several devices: no kernel of one device can know it."""
    arrays = norm.arguments(norm.Shape(r=2, b=2, l=9, i=8))
    assert_unchanged(gated_rms_norm, arrays, FOUR, implementation=None)


def test_results_lie_split():
    arrays = duality.arguments(replace(SSD, g=2))
    y, h_last = jax.jit(split(ssd))(**arrays)
    assert y.sharding.spec == PartitionSpec("data", None, "model")
    assert h_last.sharding.spec[:2] == ("data", "model")


def test_gradients_are_summed_once_over_the_axes_they_are_shared_over():
    arrays = duality.arguments(replace(SSD, g=2))

    def loss(arrays):
        return jnp.sum(split(partial(ssd, mask=gaps(2, 9)))(**arrays)[0])

    text = str(jax.make_jaxpr(jax.grad(loss))(arrays))
    # A and D, of the heads of a device, over its rows; nothing over the axis that nothing is split over
    assert text.count("psum") == 2
    assert "rest" not in text[text.index("psum") :].split("]")[0]


def one_result(place, operation, **arguments):
    return operation(**arguments)[place]


@pytest.mark.parametrize("place", [0, 1])
def test_a_result_that_nobody_uses(place):
    assert_unchanged(partial(one_result, place, ssd), duality.arguments(replace(SSD, g=2)))


@needs_triton
def test_the_gradient_of_a_tail_that_nobody_uses_is_not_added():
    arrays = conv.arguments(conv.Shape(b=2, l=9, d=8))

    def program(place):
        def loss(arrays):
            return jnp.sum(split(partial(causal_conv1d, implementation="gpu"))(**arrays)[place])

        return str(jax.make_jaxpr(jax.grad(loss))(arrays))

    assert " pad[" not in program(0)
    assert " pad[" in program(1)


def test_under_vmap_remat_and_scan():
    arrays = duality.arguments(replace(SSD, g=2))
    stacked = {name: jnp.stack([value, value]) for name, value in arrays.items()}
    run = jax.checkpoint(lambda arrays: split(ssd)(**arrays))
    expected = split(ssd)(**arrays)
    for both in (jax.vmap(run)(stacked), jax.lax.map(run, stacked)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-5), both, expected)

    def loss(stacked):
        return sum(jnp.sum(jnp.sin(y)) for y in jax.lax.map(run, stacked))

    def whole(stacked):
        return sum(jnp.sum(jnp.sin(y)) for y in jax.lax.map(lambda arrays: ssd(**arrays), stacked))

    gradients, wanted = jax.jit(jax.grad(loss))(stacked), jax.jit(jax.grad(whole))(stacked)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients, wanted)


def test_inside_a_shard_map_nothing_is_split_again():
    arrays = duality.arguments(SSD)
    rows = PartitionSpec("data")
    specs = {name: PartitionSpec() if name in ("A", "D") else rows for name in arrays}

    @jax.jit
    def mapped(arrays):
        inside = jax.shard_map(
            lambda arrays: split(ssd)(**arrays), mesh=MESH, in_specs=(specs,), out_specs=(rows, rows), check_vma=False
        )
        return inside(arrays)

    np.testing.assert_allclose(mapped(arrays)[0], ssd(**arrays)[0], rtol=1e-5, atol=1e-5)


def test_the_context_is_part_of_what_jit_remembers():
    function = jax.jit(ssd)
    arrays = duality.arguments(SSD)
    assert function(**arrays)[0].sharding.is_fully_replicated
    with sharding(MESH, batch="data"):
        assert not function(**arrays)[0].sharding.is_fully_replicated
    assert function(**arrays)[0].sharding.is_fully_replicated


def test_an_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="heads='tensor'.* are no different axes of"), sharding(MESH, heads="tensor"):
        pass
    with pytest.raises(ValueError, match="no different axes"), sharding(MESH, batch=("data", "model"), heads="model"):
        pass
