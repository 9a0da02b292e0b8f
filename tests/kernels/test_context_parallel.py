"""Scans over a sequence that lies on eight virtual devices: the same outputs and gradients as on one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import causal_conv1d, context_parallel, selective_scan, sharding, ssd, ssd_bidirectional, ssd_pair
from dimba_kernels.causal_conv1d import arg_specs as conv
from dimba_kernels.selective_scan import arg_specs as s6
from dimba_kernels.ssd import arg_specs as duality
from dimba_kernels.testing import assert_agreement, gaps, packed, right_padding
from jax.sharding import PartitionSpec

if jax.device_count() < 8:
    pytest.skip("needs eight devices", allow_module_level=True)

AUTO = jax.sharding.AxisType.Auto
EIGHT = jax.make_mesh((8,), ("parts",), axis_types=(AUTO,))
ALL = jax.make_mesh((2, 2, 2), ("data", "model", "parts"), axis_types=(AUTO,) * 3)
L = 32
SSD = duality.Shape(b=2, l=L, h=4, p=3, n=5, g=2)
S6 = s6.Shape(b=2, l=L, d=6, n=4)
# runs of one part, of several, and of less than one
SEGMENTS = jnp.asarray(
    np.cumsum(np.isin(np.arange(L), [[4, 20], [7, 9]]) | (np.arange(L) == [[31], [12]]), axis=1), jnp.int32
)


def over_parts(run, **axes):
    def inside(**arrays):
        with sharding(EIGHT if not axes else ALL, sequence="parts", **axes):
            return run(**arrays)

    return inside


def assert_unchanged(run, arrays, tolerance=1e-5, looser=None, **axes):
    split = over_parts(partial(run, implementation="xla"), **axes)
    assert_agreement(split, partial(run, implementation="reference"), arrays, tolerance, looser)


@pytest.mark.parametrize(
    ("seen", "reverse"),
    [
        ({}, False),
        ({"mask": gaps(2, L), "segments": packed(2, L)}, True),
        ({"segments": SEGMENTS}, False),
        ({"segments": SEGMENTS}, True),
    ],
)
def test_ssd(reverse, seen):
    assert_unchanged(partial(ssd, reverse=reverse, chunk=3, **seen), duality.arguments(SSD))


PADDED = {"mask": right_padding(2, L), "segments": SEGMENTS}


@pytest.mark.parametrize(("seen", "reverse"), [({}, False), (PADDED, False), (PADDED, True)])
def test_selective_scan(reverse, seen):
    raw = bool(seen)
    arrays = (s6.raw_arguments if raw else s6.arguments)(S6)
    assert_unchanged(partial(selective_scan, reverse=reverse, dt_softplus=raw, **seen), arrays)


@pytest.mark.parametrize("reverse", [False, True])
def test_causal_conv1d(reverse):
    arrays = conv.arguments(conv.Shape(b=2, l=L, d=6))
    seen = {"mask": gaps(2, L), "segments": packed(2, L)} if reverse else {"segments": SEGMENTS}
    assert_unchanged(partial(causal_conv1d, reverse=reverse, activation="silu", **seen), arrays)


def test_optional_inputs_left_out():
    assert_unchanged(ssd, {name: duality.arguments(SSD)[name] for name in ("x", "dt", "A", "B", "C")})
    assert_unchanged(selective_scan, {name: s6.arguments(S6)[name] for name in ("u", "dt", "A", "B", "C")})
    assert_unchanged(causal_conv1d, {name: conv.arguments(conv.Shape(b=2, l=L, d=6))[name] for name in ("x", "w")})


def test_rows_heads_and_parts_at_once():
    axes = dict(batch="data", heads="model")
    assert_unchanged(partial(ssd, mask=gaps(2, L)), duality.arguments(replace(SSD, g=1)), **axes)
    assert_unchanged(partial(selective_scan, segments=packed(2, L)), s6.arguments(S6), **axes)


def test_both_forms_of_two_directions():
    arrays = duality.arguments(SSD)
    del arrays["h0"]
    assert_unchanged(partial(ssd_bidirectional, mask=gaps(2, L)), arrays)
    assert_unchanged(partial(ssd_pair, segments=packed(2, L)), duality.pair_arguments(SSD))


def test_bfloat16():
    arrays = duality.arguments(replace(SSD, p=16, n=16), jnp.bfloat16)
    assert_unchanged(ssd, arrays, 1e-2, {"gradient A": 3e-2})


@pytest.mark.parametrize(("run", "reverse"), [(selective_scan, True), (ssd, False)])
def test_extreme_decays(run, reverse):
    """Decays from exp(-1e3) to 1 - 1e-6, mixed."""
    arrays = s6.arguments(S6) if run is selective_scan else duality.arguments(SSD)
    exponents = np.random.default_rng(2).uniform(-6, 3, size=arrays["dt"].shape)
    arrays |= {"dt": jnp.asarray((10.0**exponents).astype(np.float32)), "A": jnp.full(arrays["A"].shape, -1.0)}
    assert_unchanged(partial(run, reverse=reverse), arrays)


def test_parts_that_do_not_divide_stay_whole():
    assert_unchanged(ssd, duality.arguments(replace(SSD, l=13)))
    assert_unchanged(causal_conv1d, conv.arguments(conv.Shape(b=2, l=16, d=6)))  # parts of 2, and a window of 4


def test_by_hand_inside_a_shard_map():
    """The functions themselves, and their gradient by the rule of `jax.shard_map`."""
    arrays = duality.arguments(SSD)
    along, whole = PartitionSpec(None, "parts"), PartitionSpec()
    specs = {name: along if name in ("x", "dt", "B", "C") else whole for name in arrays}

    def split(**arrays):
        inside = partial(context_parallel.ssd, axis_name="parts", implementation="xla")
        return jax.shard_map(
            lambda arrays: inside(**arrays), mesh=EIGHT, in_specs=(specs,), out_specs=(along, whole), check_vma=False
        )(arrays)

    assert_agreement(split, partial(ssd, implementation="reference"), arrays, 1e-5)
    with pytest.raises(ValueError, match="parts of 2 positions, expected at least 3 for a window of 4"):
        jax.eval_shape(
            jax.shard_map(
                partial(context_parallel.causal_conv1d, axis_name="parts"), mesh=EIGHT, in_specs=(along, whole),
                out_specs=(along, whole), check_vma=False,
            ),
            jnp.ones((1, 16, 3)), jnp.ones((3, 4)),
        )  # fmt: skip


def test_nothing_as_large_as_all_states_is_made():
    """No array of S6 has more than a few times the elements of its inputs on a device."""
    arrays = s6.arguments(s6.Shape(b=1, l=256, d=32, n=16))
    split = over_parts(partial(selective_scan, implementation="xla"))
    compiled = jax.jit(lambda arrays: split(**arrays)[0]).lower(arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 // 8 * 32 * 16 * 4  # l d n of a part, in float32
