"""How the GPU kernels of `ssd` cut their work: no cut changes a result, and none that does not fit is tried."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import ssd, ssd_bidirectional, ssd_pair
from dimba_kernels.ssd.arg_specs import SHAPES, arguments, pair_arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, gaps, outputs_and_gradients, packed

pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
from dimba_kernels.ssd import gpu_tiles  # noqa: E402
from dimba_kernels.ssd.gpu_decay_kernels import chunk_decays  # noqa: E402
from dimba_kernels.triton_call import triton_call  # noqa: E402

SMALL = replace(SHAPES["tiny"], b=2, l=37, p=16, n=16)
CHUNKS = dict(chunk=16, gradient_chunk=16)  # several, the last of them not full
WHOLE = gpu_tiles.tiles


def use(monkeypatch, **changes):
    """Tiles as they are but for some fields; returns a list of those that were asked for."""
    asked = []

    def tiles(*args, **kwargs):
        asked.append(replace(WHOLE(*args, **kwargs), **changes))
        return asked[-1]

    monkeypatch.setattr(gpu_tiles, "tiles", tiles)
    return asked


@pytest.mark.parametrize(
    ("form", "dtype"), [(ssd, jnp.bfloat16), (ssd_bidirectional, jnp.float32), (ssd_pair, jnp.float32)]
)
def test_gradients_by_gpu_kernels_of_heads_in_parts_are_those_of_all(form, dtype, monkeypatch):
    """What large states do to the backward pass, on small ones. Of one group: see the next test."""
    arrays = (pair_arguments if form is ssd_pair else arguments)(replace(SMALL, h=8, g=2), dtype)
    seen = {"mask": gaps(2, 37), "segments": packed(2, 37)} | ({"reverse": True} if form is ssd else {})
    if form is ssd_bidirectional:
        del arrays["h0"]

    def in_parts(parts):
        asked = use(monkeypatch, gradient_parts=parts, gradient_heads=2, **CHUNKS)
        found = outputs_and_gradients(lambda **arrays: form(**arrays, **seen, implementation="gpu"), arrays)
        assert {tiles.gradient_parts for tiles in asked} == {parts}
        return found

    one, four = in_parts(1), in_parts(4)
    for name, value in one.items():
        # XLA sums D's over the positions, in an order that depends on how many heads there are
        rounding = 1e-6 if name == "gradient D" else 0
        np.testing.assert_allclose(np.asarray(value), np.asarray(four[name]), rtol=rounding, atol=0, err_msg=name)


@pytest.mark.parametrize(
    ("form", "dtype", "parts"),
    [(ssd, "float32", 2), (ssd_bidirectional, "float32", 2), (ssd, "bfloat16", 2), (ssd, "bfloat16", 4)],
)
def test_shares_of_one_group_are_added_up_part_by_part_by_gpu_kernels(form, dtype, parts, monkeypatch):
    """Then a later part adds to the shares of the first in B's and C's gradients, which are not kept apart."""
    asked = use(monkeypatch, gradient_parts=parts, gradient_heads=2, **CHUNKS)
    arrays = arguments(replace(SMALL, h=8, g=1), jnp.dtype(dtype))
    if form is ssd_bidirectional:
        del arrays["h0"]
    run, reference = partial(form, implementation="gpu"), partial(form, implementation="reference")
    looser = {"gradient A": 3e-2} if dtype == "bfloat16" else None  # as in test_ssd_kernel.py
    assert_agreement(run, reference, arrays, TOLERANCE[dtype], looser)
    assert {tiles.gradient_parts for tiles in asked} == {parts}


def test_a_last_state_that_nobody_uses_has_no_gradient_by_gpu_kernels():
    """Its cotangent is then no array at all, which the kernels are told."""
    run, reference = (
        lambda name=name, **arrays: ssd(**arrays, implementation=name)[0] for name in ("gpu", "reference")
    )
    assert_agreement(run, reference, arguments(SMALL), TOLERANCE["float32"])


# h, g, and in how many parts their gradients are taken
@pytest.mark.parametrize(
    ("h", "g", "parts"),
    [(60, 1, 2), (48, 1, 2), (80, 1, 2), (45, 1, 1), (61, 1, 1), (24, 4, 2), (32, 8, 2), (2, 1, 1)],
)
def test_tiles_divide_the_heads_and_halve_large_states(h, g, parts):
    tiles = WHOLE("", b=8, l=4096, h=h, g=g, p=64, n=128, ways=1, both=False, wide=False)
    assert h // g % tiles.heads == h // g % tiles.gradient_heads == 0
    assert h % (tiles.gradient_parts * tiles.gradient_heads) == 0
    assert tiles.gradient_parts == parts


@pytest.mark.parametrize("changes", [{"heads": 3}, {"gradient_heads": 3}, {"gradient_heads": 4, "gradient_parts": 2}])
def test_tiles_that_do_not_divide_the_heads_are_refused_by_gpu_kernels(changes, monkeypatch):
    use(monkeypatch, **changes)
    with pytest.raises(ValueError, match="do not divide 4 heads in 1 groups; choose divisors"):
        ssd(**arguments(replace(SMALL, h=4)), implementation="gpu")


def test_unfinished_outputs_must_be_those_of_the_launch():
    output = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(ValueError, match="chunk_decays: unfinished outputs are .*not the first of"):
        triton_call(chunk_decays, [], [output], grid=(1,), constants={}, unfinished=[jnp.zeros((3, 2))])
