"""The benchmark's parts that need no accelerator."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from dimba_kernels.bench import kernel_times, tune
from dimba_kernels.ssd import gpu_tiles


def profile(*events):
    """What the profiler returns: a GPU's stream of (start, name, nanoseconds), and a host's line beside it."""
    events = [SimpleNamespace(start_ns=start, name=name, duration_ns=ns) for start, name, ns in events]
    gpu = SimpleNamespace(
        name="/device:GPU:0",
        lines=[
            SimpleNamespace(name="Stream #13(Compute)", events=events),
            SimpleNamespace(name="XLA Ops", events=events),
        ],
    )
    host = SimpleNamespace(name="/host:CPU", lines=[SimpleNamespace(name="Stream", events=events)])
    return SimpleNamespace(planes=[host, gpu])


def test_kernels_are_listed_in_order_with_the_median_of_their_runs(monkeypatch):
    monkeypatch.setattr(kernel_times, "RUNS", 3)
    # later runs first, as files come in any order
    runs = [(60, "b", 5e6), (50, "a", 9e6), (30, "a", 2e6), (40, "b", 6e6), (10, "a", 1e6), (20, "b", 7e6)]
    assert kernel_times.in_order([profile(*runs)]) == [("a", 2.0), ("b", 6.0)]
    with pytest.raises(RuntimeError, match="saw 5 kernels in 3 runs"):
        kernel_times.in_order([profile(*runs[1:])])
    with pytest.raises(RuntimeError, match="not launch the same kernels"):
        kernel_times.in_order([profile((70, "c", 1e6), *runs[1:])])


def test_tiles_that_are_stages_are_searched_one_by_one():
    tiles = gpu_tiles.tiles("NVIDIA H200", b=8, l=2048, h=60, g=1, p=64, n=128, ways=1, both=False, wide=False)
    assert {change for change, _ in tune.neighbours(tiles, {"x_stages"})} == {"x_stages=1", "x_stages=3"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="says what a CPU has not")
def test_without_a_gpu_there_is_one_clear_error():
    with pytest.raises(RuntimeError, match="the profiler saw 0 kernels"):
        kernel_times.kernel_times(lambda: jnp.zeros(3) + 1)
