"""What the TPU interpreter checks of the kernels beside their numbers: reads outside of arrays, and races.

A race needs two writers. The interpreter gives the programs of a grid's parallel axes to two threads, as a chip of two
cores would, and copies run beside them: it reports two accesses of one place that nothing orders, one of them a write.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from dimba_kernels import causal_conv1d, selective_scan, ssd, ssd_bidirectional
from dimba_kernels.causal_conv1d import arg_specs as conv
from dimba_kernels.linear_scan.tpu import linear_scan
from dimba_kernels.selective_scan import arg_specs as s6
from dimba_kernels.ssd import arg_specs as duality
from dimba_kernels.tpu_call import interpreted, tpu_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

CHECKED = pltpu.InterpretParams(
    uninitialized_memory="nan", out_of_bounds_reads="raise", detect_races=True, num_cores_or_threads=2
)
SLOW = ("ssd", "ssd_bidirectional", "selective_scan")


def races(capfd) -> int:
    """How many the interpreter has printed since the last call; it keeps no account of them past a kernel."""
    return capfd.readouterr().out.count("RACE DETECTED")


def forward_and_backward(function, arrays):
    outputs, pull = jax.vjp(lambda arrays: function(**arrays), arrays)
    jax.block_until_ready(pull(jax.tree.map(jnp.ones_like, outputs)))


@pytest.mark.parametrize("operation", ["causal_conv1d", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_kernels_have_no_races(operation, capfd):
    """Two rows, and more than one chunk or block of positions."""
    shape = replace(duality.SHAPES["tiny"], b=2, l=140, h=2, g=1)
    function, arrays = {
        "ssd": (ssd, lambda: duality.arguments(shape, jnp.float32)),
        "ssd_bidirectional": (ssd_bidirectional, lambda: duality.arguments(shape, jnp.float32)),
        "selective_scan": (selective_scan, lambda: s6.arguments(replace(s6.SHAPES["tiny"], b=2, l=140), jnp.float32)),
        "causal_conv1d": (causal_conv1d, lambda: conv.arguments(replace(conv.SHAPES["tiny"], b=2, l=140), jnp.float32)),
    }[operation]
    given = arrays()
    if operation == "ssd_bidirectional":
        del given["h0"]
    with interpreted(CHECKED):
        forward_and_backward(lambda **arrays: function(**arrays, implementation="tpu"), given)
    assert races(capfd) == 0


def test_the_bare_scan_has_no_races(capfd):
    with interpreted(CHECKED):
        jax.block_until_ready(linear_scan(jnp.ones((2, 64, 1024)), jnp.ones((2, 64, 1024))))
    assert races(capfd) == 0


def copied(index) -> jax.Array:
    """Two programs, each of which adds one to a block of 8 rows of 16, and writes where `index` says."""

    def kernel(x, y):
        y[...] = x[...] + 1

    return tpu_call(
        kernel,
        grid=(2,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), index),
        out_shape=jax.ShapeDtypeStruct((16, 128), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    )(jnp.zeros((16, 128)))


def test_a_race_is_found(capfd):
    with interpreted(CHECKED):
        jax.block_until_ready(copied(lambda i: (i, 0)))
        assert races(capfd) == 0
        jax.block_until_ready(copied(lambda i: (0, 0)))
        assert races(capfd) > 0


def test_a_read_outside_an_array_raises():
    def kernel(x, at, y):
        y[...] = x[pl.ds(at[0], 8), :]

    def run(at):
        return tpu_call(
            kernel,
            in_specs=[pl.BlockSpec(memory_space=pltpu.VMEM), pl.BlockSpec(memory_space=pltpu.SMEM)],
            out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        )(jnp.zeros((16, 128)), jnp.array([at]))

    with interpreted():
        jax.block_until_ready(run(8))
        with pytest.raises(Exception, match="[Oo]ut-of-bounds"):
            jax.block_until_ready(run(16))


def test_interpreting_is_of_a_context():
    """What was traced for the interpreter is not found outside, nor the reverse."""
    x = jnp.ones((1, 16, 1024))
    run = jax.jit(lambda x: linear_scan(x, x))
    with interpreted():
        assert run(x).shape == x.shape
    assert "tpu_custom_call" in run.trace(x).lower(lowering_platforms=("tpu",)).as_text()
    with interpreted():
        assert "tpu_custom_call" not in run.lower(x).as_text()
