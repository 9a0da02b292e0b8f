"""`causal_conv1d_pair`: every implementation against two convolutions by the reference, cut and stacked."""

from __future__ import annotations

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import causal_conv1d, causal_conv1d_pair, sharding
from dimba_kernels.causal_conv1d.arg_specs import Shape, pair_arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, assert_same_bits_twice, gaps

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SMALL = (4, 3, 3)  # which no block of channels divides: cut and stacked by XLA
WIDE = (256, 128, 128)  # which the GPU kernels write in three parts
NARROW = (128, 128, 128)


def two(x, x_back, w, bias, *, sizes, tail=None, tail_back=None, **options):
    """What the definition says."""
    run = partial(causal_conv1d, implementation="reference", **options)
    y, after = run(x, w[0], bias[0], tail=tail)
    y_back, after_back = run(x_back, w[1], bias[1], tail=tail_back, reverse=True)
    parts = (jnp.split(values, np.cumsum(sizes)[:-1], axis=-1) for values in (y, y_back))
    return tuple(map(jnp.stack, zip(*parts, strict=True))), (after, after_back)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sizes", "l", "options"),
    [(SMALL, 7, {}), (WIDE, 2, {}), (NARROW, 37, dict(activation="silu")), (WIDE, 33, dict(mask=True))],
)
def test_agrees_with_reference(implementation, sizes, l, options, dtype):
    if implementation == "tpu" and sizes is not SMALL:
        pytest.skip("two convolutions, which are tested for themselves")
    options = options | (dict(mask=gaps(2, l)) if "mask" in options else {})
    arrays = pair_arguments(Shape(b=2, l=l, d=sum(sizes)), DTYPES[dtype])
    run = partial(causal_conv1d_pair, sizes=sizes, implementation=implementation, **options)
    assert_agreement(run, partial(two, sizes=sizes, **options), arrays, TOLERANCE[dtype])


@pytest.mark.parametrize("sizes", [SMALL, NARROW])
def test_without_tails(implementation, sizes):
    if implementation == "tpu" and sizes is not SMALL:
        pytest.skip("two convolutions, which are tested for themselves")
    arrays = pair_arguments(Shape(b=2, l=9, d=sum(sizes)))
    arrays = {name: array for name, array in arrays.items() if "tail" not in name}
    run = partial(causal_conv1d_pair, sizes=sizes, implementation=implementation)
    assert_agreement(run, partial(two, sizes=sizes), arrays, TOLERANCE["float32"])


@pytest.mark.parametrize("left_out", ["tail", "tail_back"])
def test_one_tail(left_out):
    """As sampling in blocks passes them."""
    pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
    arrays = pair_arguments(Shape(b=2, l=9, d=sum(NARROW)))
    del arrays[left_out]
    run = partial(causal_conv1d_pair, sizes=NARROW, implementation="gpu")
    assert_agreement(run, partial(two, sizes=NARROW), arrays, TOLERANCE["float32"])


def test_two_convolutions_of_one_array():
    pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
    arrays = pair_arguments(Shape(b=2, l=9, d=sum(NARROW)))
    del arrays["x_back"]

    def of_one(run):
        return lambda x, **arrays: run(x=x, x_back=x, **arrays)

    run = partial(causal_conv1d_pair, sizes=NARROW, implementation="gpu")
    assert_agreement(of_one(run), of_one(partial(two, sizes=NARROW)), arrays, TOLERANCE["float32"])


@pytest.mark.parametrize("way", ["vmap", "scan"])
def test_under_vmap_remat_and_scan(way):
    pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
    each = [pair_arguments(Shape(b=1, l=6, d=sum(NARROW)), seed=seed) for seed in (0, 5)]
    stacked = {name: jnp.stack([arrays[name] for arrays in each]) for name in each[0]}
    run = partial(causal_conv1d_pair, sizes=NARROW, implementation="gpu")
    one = jax.checkpoint(lambda arrays: run(**arrays))

    def all_of_them(**stacked):
        return jax.vmap(one)(stacked) if way == "vmap" else jax.lax.map(one, stacked)

    def one_by_one(**stacked):
        return jax.lax.map(lambda arrays: two(**arrays, sizes=NARROW), stacked)

    assert_agreement(all_of_them, one_by_one, stacked, TOLERANCE["float32"])


def test_same_bits_twice(implementation):
    sizes = SMALL if implementation == "tpu" else NARROW
    arrays = pair_arguments(Shape(b=2, l=9, d=sum(sizes)), jnp.bfloat16)
    assert_same_bits_twice(partial(causal_conv1d_pair, sizes=sizes, implementation=implementation), arrays)


@pytest.mark.parametrize(("sizes", "stacked"), [(SMALL, True), (NARROW, False)])
def test_gpu_kernels_write_the_parts_themselves(sizes, stacked):
    """No concatenation of activations is left, forward or backward, where blocks of channels divide the sizes."""
    pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
    arrays = pair_arguments(Shape(b=2, l=40, d=sum(sizes)), jnp.bfloat16)
    run = partial(causal_conv1d_pair, sizes=sizes, implementation="gpu")

    def both(arrays):
        results, pull = jax.vjp(lambda arrays: run(**arrays)[0], arrays)
        return results, pull(results)

    sizes_of = [
        eqn.outvars[0].aval.shape
        for eqn in jax.make_jaxpr(both)(arrays).jaxpr.eqns
        if eqn.primitive.name == "concatenate"
    ]
    assert any(shape[-2:-1] == (40,) for shape in sizes_of) == stacked


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton: install the `gpu` extra")
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("axis", ["fsdp", "tensor", "sequence"])
def test_over_devices(axis):
    """Rows are split as the kernels are; where channels or positions are, two convolutions are."""
    mesh = jax.make_mesh(
        (2, 2), ("data", axis), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    how = dict(
        batch=("data", "fsdp") if axis == "fsdp" else "data",
        heads="tensor" if axis == "tensor" else None,
        sequence="sequence" if axis == "sequence" else None,
    )
    arrays = pair_arguments(Shape(b=4, l=8, d=sum(NARROW)))
    run = partial(causal_conv1d_pair, sizes=NARROW, implementation="gpu")
    with sharding(mesh, **how):
        program = str(jax.make_jaxpr(lambda arrays: run(**arrays))(arrays))
        # the parts of a device's rows, or the results of a device's channels or positions
        assert ("2,1,8,128" in program) == (axis == "fsdp")
        assert ("2,8,192" in program) == (axis == "tensor")
        assert ("2,4,384" in program) == (axis == "sequence")
        assert_agreement(run, partial(two, sizes=NARROW), arrays, TOLERANCE["float32"])


def test_bad_arguments_are_named():
    arrays = pair_arguments(Shape(b=2, l=9, d=10))
    with pytest.raises(ValueError, match=r"causal_conv1d_pair: sizes \(4, 3, 4\) are not three that add up to the 10"):
        causal_conv1d_pair(**arrays, sizes=(4, 3, 4))
    with pytest.raises(ValueError, match=r"causal_conv1d_pair: sizes \(-2, 6, 6\) are not three"):
        causal_conv1d_pair(**arrays, sizes=(-2, 6, 6))
    with pytest.raises(ValueError, match="causal_conv1d_pair: x is float32 and x_back bfloat16, expected one dtype"):
        causal_conv1d_pair(**arrays | {"x_back": arrays["x_back"].astype(jnp.bfloat16)}, sizes=SMALL)
    with pytest.raises(ValueError, match="causal_conv1d_pair: implementation='cuda' is unknown"):
        causal_conv1d_pair(**arrays, sizes=SMALL, implementation="cuda")
    with pytest.raises(ValueError, match=r"causal_conv1d_pair: bias has shape \(10,\), expected \(2, 10\)"):
        causal_conv1d_pair(**arrays | {"bias": arrays["bias"][0]}, sizes=SMALL)
    with pytest.raises(ValueError, match="causal_conv1d_pair: activation='relu' is unknown"):
        causal_conv1d_pair(**arrays, sizes=SMALL, activation="relu")
    with pytest.raises(ValueError, match="causal_conv1d_pair: mask is int32, expected bool"):
        causal_conv1d_pair(**arrays, sizes=SMALL, mask=jnp.ones((2, 9), jnp.int32))
