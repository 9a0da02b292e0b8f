"""`ssd_bidirectional` and `ssd_pair`: every implementation against the reference of both directions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import ssd, ssd_bidirectional, ssd_pair
from dimba_kernels.ssd.arg_specs import SHAPES, Shape, arguments, pair_arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, gaps, packed

TINY = replace(SHAPES["tiny"], b=1, h=2)  # the time of an interpreter is in the number of programs
SMALL = replace(TINY, p=16, n=16)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# A's gradient sums terms of either sign over the whole sequence. Their rounding stays when they cancel: over 48 draws
# its relative error had a median of .0025 and a maximum of .019, while that of dt, term by term, stayed below .0035.
LOOSER = {"float32": {}, "bfloat16": {"gradient A": 3e-2}}


def assert_agrees(run, implementation, arrays, dtype="float32"):
    actual, reference = (partial(run, implementation=name) for name in (implementation, "reference"))
    assert_agreement(actual, reference, arrays, TOLERANCE[dtype], looser=LOOSER[dtype])


@pytest.mark.parametrize(("chunk", "segments"), [(8, None), (None, packed(1, 67))])
def test_bidirectional_is_the_sum_of_both_directions(any_implementation, chunk, segments):
    arrays = arguments(replace(TINY, l=67, g=2))
    del arrays["h0"]
    mask = gaps(1, 67)

    def both(D, **rest):
        forward, _ = ssd(**rest, D=D, mask=mask, segments=segments, implementation="reference")
        backward, _ = ssd(**rest, mask=mask, segments=segments, reverse=True, implementation="reference")
        return forward + backward

    run = partial(ssd_bidirectional, mask=mask, segments=segments, chunk=chunk, implementation=any_implementation)
    assert_agreement(run, both, arrays, TOLERANCE["float32"])


def test_bidirectional_in_bfloat16(implementation):
    arrays = arguments(replace(SMALL, l=67, g=2), jnp.bfloat16)
    del arrays["h0"]
    assert_agrees(partial(ssd_bidirectional, chunk=8), implementation, arrays, "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_pair_agrees_with_reference(implementation, dtype):
    arrays = pair_arguments(replace(SMALL, l=67, g=2), DTYPES[dtype])
    seen = {"mask": gaps(1, 67), "segments": packed(1, 67)} if dtype == "float32" else {}
    assert_agrees(partial(ssd_pair, chunk=16, **seen), implementation, arrays, dtype)


def test_pair_with_optional_inputs_left_out(implementation):
    arrays = pair_arguments(replace(TINY, l=7))
    del arrays["h0"], arrays["D"]
    assert_agrees(ssd_pair, implementation, arrays)


def test_pair_is_a_forward_and_a_reverse_scan():
    arrays = pair_arguments(TINY)
    y, h = ssd_pair(**arrays, implementation="reference")
    for way in (0, 1):
        expected = ssd(
            **{name: value[way] for name, value in arrays.items()}, reverse=bool(way), implementation="reference"
        )
        np.testing.assert_array_equal(y[way], expected[0])
        np.testing.assert_array_equal(h[way], expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (Shape(b=2, l=1111, h=6, p=64, n=128), "bfloat16"),
        (Shape(b=1, l=1000, h=4, p=64, n=128, g=2), "float32"),
        (Shape(b=1, l=777, h=4, p=128, n=256), "bfloat16"),
        (Shape(b=1, l=8191, h=2, p=64, n=64), "bfloat16"),
    ],
)
def test_large_shapes(shape, dtype):
    arrays = arguments(shape, DTYPES[dtype])
    del arrays["h0"]
    assert_agrees(ssd_bidirectional, "gpu", arrays, dtype)
    assert_agrees(ssd_pair, "gpu", pair_arguments(shape, DTYPES[dtype]), dtype)
