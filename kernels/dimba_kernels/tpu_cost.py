"""What the TPU kernels cost, without a TPU: cycles of their static schedules, beside XLA's for the same operation.

    python -m dimba_kernels.tpu_cost [--generations v5e v6e] [--cases scan ...]

Figures are cycles per token and 128 channels, or said otherwise:

- inner loop: bundles of each kernel's deepest loop, as libtpu schedules it; a core runs one a cycle. Kernels of `ssd`
  are unrolled: their loop is that over the grid, a step of which is a chunk of a block of heads;
- kernels: all bundles of a grid step, times the steps;
- all: the kernels, and the compiler's own estimate for what XLA does around them;
- xla: that estimate for `implementation="xla"`;
- memory: the arguments and results through HBM at its rated speed; in kernels: those of every kernel, what they leave
  each other included. A kernel takes the larger of this and its bundles, since the copies of one grid step run during
  another.

Not counted is what only some steps do: the first and the last of a sequence, and chunks whose decays cannot be
factored.

Of the inner loops: MXU is the share of bundles in which a matrix unit is at work, push the share that issue an
operation of one (v5e has four, and a push keeps one of them for some eight bundles: at their limit they get one every
other bundle). VALU is how full the vector units are in the longest loop, spills how many registers a pass stores and
loads again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.causal_conv1d.api import causal_conv1d
from dimba_kernels.causal_conv1d.tpu import causal_conv1d as causal_conv1d_tpu
from dimba_kernels.linear_scan.tpu import linear_scan
from dimba_kernels.selective_scan.api import selective_scan
from dimba_kernels.selective_scan.tpu import selective_scan as selective_scan_tpu
from dimba_kernels.ssd.api import ssd
from dimba_kernels.ssd.tpu import ssd as ssd_tpu
from dimba_kernels.tpu_compile import GENERATIONS, Compiled, compile_for
from dimba_kernels.tpu_schedule import Loop

# bytes a second of HBM, and cycles a second: rated FLOP/s over those of a cycle
_RATES = {"v5e": (0.819e12, 1.5e9), "v5p": (2.765e12, 1.75e9), "v6e": (1.64e12, 1.75e9)}
_ANCHORS = """Anchors for the bare recurrence, inner loop on v5e (libtpu 0.0.42): recurrentgemma's LRU kernel 1.5
(12 bundles for 8 x 128 channels), and copies around the call; one row of 128 channels at a time 19."""


@dataclass(frozen=True)
class Case:
    """kernel, xla: the same operation, called with `arrays` by name; width: its channels."""

    kernel: Callable[..., Any]
    xla: Callable[..., Any]
    arrays: dict[str, jax.ShapeDtypeStruct]
    tokens: int
    width: int
    gradient: bool = True


def _shape(*size: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


def _bare(a: jax.Array, x: jax.Array) -> jax.Array:
    def step(h: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h = at[0] * h + at[1]
        return h, h

    inputs = (a.swapaxes(0, 1), x.swapaxes(0, 1))
    return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), inputs)[1].swapaxes(0, 1)


def _scan_kernel(u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, **options: Any) -> jax.Array:
    plain = dict.fromkeys(("h0", "mask", "segments", "chunk", "z", "dt_bias"))
    return selective_scan_tpu(u, dt, A, B, C, **(plain | options), reverse=False, dt_softplus="dt_bias" in options)[0]


def _scan_xla(u: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, **options: Any) -> jax.Array:
    if "dt_bias" in options:
        dt = jax.nn.softplus(dt.astype(jnp.float32) + options.pop("dt_bias")[None, None])
    return selective_scan(u, dt, A, B, C, **options, implementation="xla")[0]


def _conv_kernel(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
    options = dict.fromkeys(("tail", "mask", "segments"))
    return causal_conv1d_tpu(x, w, bias, **options, reverse=False, activation="silu")[0]


def _conv_xla(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
    return causal_conv1d(x, w, bias, activation="silu", implementation="xla")[0]


def _ssd_kernel(x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array) -> jax.Array:
    options = dict.fromkeys(("h0", "mask", "segments", "chunk"))
    return _flat(ssd_tpu(_by_head(x, A), dt, A, B[:, :, None], C[:, :, None], D=D, **options, reverse=False)[0])


def _ssd_xla(x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array) -> jax.Array:
    return _flat(ssd(_by_head(x, A), dt, A, B[:, :, None], C[:, :, None], D=D, implementation="xla")[0])


def _by_head(x: jax.Array, A: jax.Array) -> jax.Array:
    """As a projection leaves x: heads side by side in the lanes."""
    return x.reshape(*x.shape[:2], A.shape[0], -1)


def _flat(y: jax.Array) -> jax.Array:
    return y.reshape(*y.shape[:2], -1)


def cases(l: int = 2048, d: int = 1024, n: int = 16) -> dict[str, Case]:
    """One sequence of each operation, for SSD eight of 60 heads of 64 and a state of 128.

    The gated scan is Mamba's, with softplus, bias and z in the kernel.
    """
    found = {"bare scan, float32": Case(_bare_kernel, _bare, {"a": _shape(1, l, d), "x": _shape(1, l, d)}, l, d, False)}
    for dtype in (jnp.float32, jnp.bfloat16):
        wide, thin = _shape(1, l, d, dtype=dtype), _shape(1, l, n, dtype=dtype)
        scan = {"u": wide, "dt": wide, "A": _shape(d, n), "B": thin, "C": thin, "D": _shape(d)}
        found[f"S6, {dtype.__name__}"] = Case(_scan_kernel, _scan_xla, scan, l, d)
        found[f"S6 gated, {dtype.__name__}"] = Case(
            _scan_kernel, _scan_xla, scan | {"z": wide, "dt_bias": _shape(d)}, l, d
        )
        conv = {"x": wide, "w": _shape(d, 4), "bias": _shape(d)}
        found[f"conv, {dtype.__name__}"] = Case(_conv_kernel, _conv_xla, conv, l, d)
    rows, heads, width = 8, 60, 64
    thin = _shape(rows, l, 128, dtype=jnp.bfloat16)
    arrays = {"x": _shape(rows, l, heads * width, dtype=jnp.bfloat16), "dt": _shape(rows, l, heads), "A": _shape(heads)}
    arrays |= {"B": thin, "C": thin, "D": _shape(heads)}
    found["SSD, bfloat16"] = Case(_ssd_kernel, _ssd_xla, arrays, rows * l, heads * width)
    return found


def _bare_kernel(a: jax.Array, x: jax.Array) -> jax.Array:
    return linear_scan(a, x)


def _both_passes(function: Callable[..., Any]) -> Callable[..., Any]:
    """(arrays, cotangent) -> outputs and gradients."""

    def run(arrays: dict[str, jax.Array], change: jax.Array) -> Any:
        y, pull = jax.vjp(lambda arrays: function(**arrays), arrays)
        return y, pull(change)

    return run


def row(generation: str, case: Case, backward: bool) -> dict[str, float | int]:
    """The figures of one line of the table."""

    def compiled(function: Callable[..., Any]) -> Compiled:
        if not backward:
            return compile_for(generation, lambda arrays: function(**arrays), case.arrays)
        y = jax.eval_shape(lambda arrays: function(**arrays), case.arrays)
        return compile_for(generation, _both_passes(function), case.arrays, y)

    ours, xla = compiled(case.kernel), compiled(case.xla)
    kernels = ours.kernels
    units = case.tokens * case.width / 128
    cycles = [kernel.inner_cycles * kernel.steps for kernel in kernels]
    inner = [kernel.inner for kernel in kernels]
    total = sum(cycles)
    longest = inner[cycles.index(max(cycles))]
    speed, clock = _RATES[generation]
    traffic = ours.memory.argument_size_in_bytes + ours.memory.output_size_in_bytes
    in_kernels = sum(kernel.steps * kernel.pass_cycles() for kernel in kernels)

    def share(bundles: Callable[[Loop], int]) -> float:
        """Of the cycles in inner loops."""
        return sum(cycle * bundles(loop) / loop.bundles for cycle, loop in zip(cycles, inner, strict=True)) / sum(
            cycles
        )

    return {
        "inner loop": total / units,
        "kernels": in_kernels / units,
        "all": (in_kernels + ours.xla_cycles) / units,
        "xla": xla.xla_cycles / units,
        "memory": traffic / speed * clock / units,
        "in kernels": ours.kernel_bytes / speed * clock / units,
        "MXU %": 100 * share(lambda loop: loop.busy),
        "push %": 100 * share(lambda loop: loop.pushes),
        "VALU %": 100 * longest.units.get("VALU", 0) / (4 * longest.bundles),
        "spills": sum(loop.units.get("VSTORE:SPILL", 0) for loop in inner),
        "copies": ours.copies,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--generations", nargs="+", default=["v5e", "v6e"], choices=list(GENERATIONS))
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of the names of cases")
    chosen = parser.parse_args()
    print(
        f"Cycles per token and 128 channels, libtpu {version('libtpu')}; batch 1, length 2048, 1,024 channels, or for "
        "SSD batch 8, length 2048, 60 heads of 64, state 128.\n"
    )
    began = time.monotonic()
    head: list[str] | None = None
    for name, case in cases().items():
        if not any(part in name for part in chosen.cases):
            continue
        for generation in chosen.generations:
            for backward in (False, True) if case.gradient else (False,):
                figures = row(generation, case, backward)
                if head is None:
                    head = ["operation", "passes", "TPU", *figures]
                    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
                values = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in figures.values()]
                passes = "both" if backward else "forward"
                print("| " + " | ".join([name, passes, generation, *values]) + " |", flush=True)
    print(f"\n{_ANCHORS}\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
