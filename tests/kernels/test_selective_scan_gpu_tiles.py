"""How the GPU kernels of `selective_scan` cut their work: no cut changes a result, and none that misfits is tried."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import pytest
from dimba_kernels import selective_scan
from dimba_kernels.bench import tune
from dimba_kernels.selective_scan.arg_specs import SHAPES, arguments, raw_arguments
from dimba_kernels.testing import TOLERANCE, assert_agreement, gaps, packed

pytest.importorskip("triton", reason="no Triton: install the `gpu` extra")
from dimba_kernels.selective_scan.gpu_tiles import Layout, Tiles  # noqa: E402

TINY = replace(SHAPES["tiny"], b=1)


def in_pieces(shape, seen, reverse, forward, backward, save, segments, parts):
    """Assert that the GPU kernels agree with the reference where their work is cut so.

    Args:
        seen: with a mask and segments of text, else with softplus.
        forward, backward: layouts.
        segments: steps of the forward and the backward pass's.
    """
    b, l = shape.b, shape.l
    rest = dict(mask=gaps(b, l, seed=2), segments=packed(b, l, 20)) if seen else dict(dt_softplus=True)
    arrays = (arguments if seen else raw_arguments)(shape)
    layout = Layout(*forward)
    cut = Tiles(layout, layout, Layout(*backward), save, *segments, parts)
    with tune.tiles("selective_scan", lambda *_: cut):
        run = partial(selective_scan, reverse=reverse, **rest)
        kernels, reference = (partial(run, implementation=name) for name in ("gpu", "reference"))
        assert_agreement(kernels, reference, arrays, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("l", "d", "seen", "reverse", "forward", "backward", "save"),
    [
        (67, 6, True, False, (8, 4, 1, 1), (8, 4, 1, 1), 16),
        (67, 6, False, True, (16, 1, 1, 1), (4, 2, 1, 1), 16),
        (64, 8, False, False, (16, 2, 1, 1), (8, 1, 1, 2), 16),
        (64, 16, True, True, (8, 1, 2, 2), (4, 4, 1, 1), 8),
        (67, 40, True, False, (8, 4, 1, 1), (4, 2, 2, 2), 16),
    ],
)
def test_gpu_kernels_in_segments_agree_with_reference(l, d, seen, reverse, forward, backward, save):
    """The sequence is cut, into equal parts or not; the layouts are some that a search may choose."""
    in_pieces(replace(TINY, l=l, d=d), seen, reverse, forward, backward, save, segments=(16, 32), parts=1)


@pytest.mark.parametrize(
    ("shape", "blocks", "seen", "reverse", "save"),
    [
        (dict(b=2, l=37, d=40), 2, True, False, 16),
        (dict(l=37, d=72), 3, False, True, 8),  # parts of two blocks and of one
        (dict(l=64, d=64), 2, False, False, 16),  # nothing but whole segments and blocks
    ],
)
def test_gpu_kernels_of_channels_in_parts_agree_with_reference(shape, blocks, seen, reverse, save):
    """What large shares of B's and C's gradients do to the backward pass."""
    assert -(-shape["d"] // Layout(4, 4, 1, 1).block(TINY.n)) == blocks
    shape = replace(TINY, **shape)
    in_pieces(shape, seen, reverse, (8, 4, 1, 1), (4, 4, 1, 1), save, segments=(32, 32), parts=2)


@pytest.mark.parametrize(
    ("forward", "backward", "save", "segments"),
    [
        (4, 4, 4, (32, 32)),
        (4, 4, 32, (32, 32)),
        (16, 4, 8, (32, 32)),
        (4, 4, 16, (32, 24)),
        (4, 4, 16, (24, 32)),
        (8, 4, 8, (8, 8)),
    ],
)
def test_gpu_tiles_that_do_not_fit_together_are_refused(forward, backward, save, segments):
    forward, wide, backward = Layout(forward, 4, 1, 1), Layout(16, 4, 1, 1), Layout(backward, 4, 1, 1)
    cut = Tiles(forward, wide, backward, save, *segments, backward_parts=1)
    with tune.tiles("selective_scan", lambda *_: cut), pytest.raises(ValueError, match="tiles do not fit together"):
        selective_scan(**arguments(TINY), implementation="gpu")


def test_gpu_kernels_round_no_gradient_to_a_narrower_dtype_than_its_own():
    """u alone in bfloat16: the shares of B's and C's gradients, and the saved states, stay in float32."""
    arrays = arguments(replace(TINY, l=40, d=16))
    arrays["u"] = arrays["u"].astype(jnp.bfloat16)
    reference = partial(selective_scan, implementation="reference")
    # what comes out in bfloat16 is held to that, and dt's gradient has u as a factor
    looser = {"output 0": 1e-2, "gradient u": 1e-2}
    assert_agreement(partial(selective_scan, implementation="gpu"), reference, arrays, TOLERANCE["float32"], looser)
