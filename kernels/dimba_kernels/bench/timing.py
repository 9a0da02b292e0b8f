"""How long a compiled function takes, and what the machine can do at most: copies, matmuls, exponentials."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

_CACHE = 60e6  # bytes: an H200's L2, the largest of the GPUs we know
_LONG = 1e9  # bytes of inputs: a run takes so long that a dispatch from Python is hidden behind it
_SAMPLES = 9
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run: the median, the least and the most of `samples`."""

    ms: float
    least: float
    most: float
    samples: int


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second, read plus written, of a copy; operations a second of a bfloat16 matmul; exp2 a second of a
    kernel that does nothing else (None where no Triton kernel runs)."""

    copy: float
    matmul: float
    exps: float | None


def timed(run: Callable[..., Any], draw: Callable[[int], tuple[Any, ...]], samples: int = _SAMPLES) -> Timing:
    """Time `run(*draw(i))`.

    Several runs, each on a set of inputs of its own, make one dispatch: what the first reads is out of the cache when
    its turn comes again. A barrier keeps the runs apart and in order. A sample is several dispatches in a row.
    """
    first = draw(0)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first))
    count = min(8, max(math.ceil(4 * _CACHE / size), 4 if size < _LONG else 1))
    count = 1 if jax.default_backend() == "cpu" else count
    sets = [first, *(draw(i) for i in range(1, count))]

    def all_of(sets: list[Any]) -> list[Any]:
        results: list[Any] = []
        for arguments in sets:
            if results:
                arguments, results[-1] = jax.lax.optimization_barrier((arguments, results[-1]))
            results.append(run(*arguments))
        return results

    compiled = jax.jit(all_of).lower(sets).compile()
    jax.block_until_ready(compiled(sets))
    alone = _seconds(lambda: jax.block_until_ready(compiled(sets)))
    dispatches = max(1, min(100, round(_SAMPLE_SECONDS / alone)))

    def sample() -> float:
        def go() -> None:
            for _ in range(dispatches):
                result = compiled(sets)
            jax.block_until_ready(result)

        return 1e3 * _seconds(go) / (dispatches * count)

    sample()
    times = [sample() for _ in range(samples)]
    return Timing(statistics.median(times), min(times), max(times), samples)


def _seconds(go: Callable[[], Any]) -> float:
    start = time.perf_counter()
    go()
    return time.perf_counter() - start


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Of one run: arguments, outputs and temporaries, as the compiler has planned them."""
    plan = compiled.memory_analysis()
    assert plan is not None, "this backend plans no memory"
    sizes = plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes
    return sum(sizes) - plan.alias_size_in_bytes


def ceilings() -> Ceilings:
    """Measure them on the default device."""
    cpu = jax.default_backend() == "cpu"
    size, side = (1 << 22, 256) if cpu else (1 << 29, 8192)
    x = jnp.ones(size, jnp.float32)
    copy = timed(lambda x: -x, lambda i: (x + i,))

    def square(i: int) -> jax.Array:
        return jax.random.normal(jax.random.key(i), (side, side)).astype(jnp.bfloat16)

    matmul = timed(lambda a, b: a @ b, lambda i: (square(2 * i), square(2 * i + 1)))
    return Ceilings(2 * 4 * size / copy.ms * 1e3, 2 * side**3 / matmul.ms * 1e3, None if cpu else _exps())


def _exps() -> float | None:
    """exp2 a second; the number is of the special-function units where nothing else is in their way."""
    try:
        from dimba_kernels.bench.exponentials import ROUNDS, exponentials
    except ImportError:
        return None
    shape = 132 * 16, 1024
    timing = timed(exponentials, lambda i: (jnp.full(shape, -1.0 - i),))
    return math.prod(shape) * ROUNDS / timing.ms * 1e3
