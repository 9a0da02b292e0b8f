"""Tokens a second of training steps, by the kernels that are chosen here and by another implementation.

    PYTHONPATH=.:kernels python experiments/kernels/end_to_end.py --output=results.jsonl
    PYTHONPATH=.:kernels JAX_PLATFORMS=cpu python experiments/kernels/end_to_end.py --cases tiny --steps 2

A step is that of `dimba_jax.train`: forward, backward, Adam, average, on random tokens that lie on the device. Each
case compiles one step for each implementation and then times them in turn, some steps of the one, some of the other,
so that what the machine does meanwhile falls on both. Prints a table; a ratio is a time over that of the first
implementation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))
from steps import Case, Step  # noqa: E402

CASES = {
    "qqp_masked": Case("qqp_masked", "long"),  # Mamba-2, n 64, rows of 64
    "mambadiff_qqp": Case("mambadiff_qqp"),  # Mamba (S6), rows of 64
    "diffumamba_1024": Case("diffumamba", "240m", rows=16, length=1024),
    "diffumamba_8192": Case("diffumamba", "240m", rows=2, length=8192),
    "diffumamba_12_1024": Case("diffumamba", "240m", rows=16, length=1024, layers=12),
    "diffumamba_12_8192": Case("diffumamba", "240m", rows=2, length=8192, layers=12),
    "tiny": Case("diffumamba", "tiny", rows=4, length=128),
}


def measure(case: Case, implementations: list[str], samples: int, steps: int) -> list[dict[str, Any]]:
    """A line for each implementation that runs."""
    built: dict[str, Step] = {}
    lines = []
    for name in implementations:
        try:
            built[name] = Step(case.config(name))
        except Exception as error:  # the other implementation's figure is worth having alone
            lines.append({"implementation": name, "error": f"{type(error).__name__}: {str(error)[:300]}"})
    for step in built.values():
        step.run(2)
    times: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(samples):
        for name, step in built.items():
            times[name].append(step.run(steps)[0])
    for name, step in built.items():
        ms = statistics.median(times[name])
        lines.append(
            {
                "implementation": name,
                "ms": ms,
                "least": min(times[name]),
                "most": max(times[name]),
                "tokens": step.tokens,
                "tokens_per_second": step.tokens / ms * 1e3,
                "peak_bytes": step.peak_bytes,
                "parameters": step.parameters,
                "compile_seconds": step.compile_seconds,
                "first_loss": step.first_loss,
            }
        )
    return lines


def row(case: str, line: dict[str, Any], base: dict[str, Any] | None) -> str:
    """A line of the table."""
    if "error" in line:
        return f"| {case} | {line['implementation']} | {line['error']} | | | | | |"
    ratio = f"{line['ms'] / base['ms']:.2f}" if base else ""
    return (
        f"| {case} ({line['parameters'] / 1e6:.0f}M) | {line['implementation']} "
        f"| {line['ms']:.1f} ({line['least']:.1f}-{line['most']:.1f}) | {line['tokens_per_second']:,.0f} | {ratio} "
        f"| {line['peak_bytes'] / 2**30:.1f} | {line['compile_seconds']:.0f} | {line['first_loss']:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [name for name in CASES if name != "tiny"]
    parser.add_argument("--cases", nargs="*", default=everything, choices=list(CASES))
    parser.add_argument("--implementations", nargs="*", default=["auto", "xla"])
    parser.add_argument("--samples", type=int, default=7, help="times taken of each")
    parser.add_argument("--steps", type=int, default=5, help="steps a sample")
    parser.add_argument("--output", type=Path, help="gets a line of JSON for each measurement")
    options = parser.parse_args()

    device = jax.devices()[0].device_kind
    print(f"{device}, jax {metadata.version('jax')}\n")
    print("| case | implementation | ms a step (least-most) | tokens/s | ratio | peak GiB | compile s | first loss |")
    print("|" + "---|" * 8, flush=True)

    for name in options.cases:
        lines = measure(CASES[name], options.implementations, options.samples, options.steps)
        base = next((line for line in lines if line["implementation"] == options.implementations[0]), None)
        for line in lines:
            print(row(name, line, base if base and "ms" in base else None), flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(
                        json.dumps({"case": name, "device": device, "jax": metadata.version("jax")} | line) + "\n"
                    )


if __name__ == "__main__":
    main()
