"""Which kernels a compiled function launches on a GPU, and how long each takes: by JAX's profiler."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

RUNS = 10


def kernel_times(run: Callable[[], Any]) -> list[tuple[str, float]]:
    """The kernels of one run in the order of their launch, with their median milliseconds over `RUNS` runs.

    Raises:
        RuntimeError: the profiler saw no kernels, or not the same in every run.
    """
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(RUNS):
                jax.block_until_ready(run())
        files = Path(folder).rglob("*.xplane.pb")
        return in_order([jax.profiler.ProfileData.from_file(str(file)) for file in files])


def in_order(profiles: Iterable[Any]) -> list[tuple[str, float]]:
    """The same, from what the profiler has written of `RUNS` runs."""
    events = sorted(event for profile in profiles for event in _events(profile))
    if not events or len(events) % RUNS:
        raise RuntimeError(f"the profiler saw {len(events)} kernels in {RUNS} runs; it needs an NVIDIA GPU and CUPTI")
    each = len(events) // RUNS
    names = {tuple(name for _, name, _ in events[k : k + each]) for k in range(0, len(events), each)}
    if len(names) > 1:
        raise RuntimeError("the runs did not launch the same kernels in the same order: their times cannot be compared")
    return [(events[k][1], statistics.median(ns for _, _, ns in events[k::each]) * 1e-6) for k in range(each)]


def _events(profile: Any) -> list[tuple[float, str, float]]:
    """Start, name and nanoseconds of what ran on the GPU's streams."""
    return [
        (event.start_ns, event.name, event.duration_ns)
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
