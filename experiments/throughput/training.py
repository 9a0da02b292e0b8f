"""Training steps on random tokens: time, tokens a second, model-FLOPs utilisation, memory, compile time.

    PYTHONPATH=.:kernels python experiments/throughput/training.py --output=training.jsonl
    PYTHONPATH=.:kernels python experiments/throughput/training.py --runs 240m "240m data=2" "240m fsdp=2"
    PYTHONPATH=.:kernels JAX_PLATFORMS=cpu python experiments/throughput/training.py --rows 2 --length 128 --runs tiny

A run is a variant of configs/diffumamba.py and what is changed of it: remat=…, unroll (no scan over the layers), xla
(no kernels), accumulate=…, rows=…, and a mesh (data=2, fsdp=2), whose rows are as many for each device. A step is
that of `dimba_jax.train`: forward, backward, Adam, average. Utilisation counts the weights' matmuls, 6 FLOPs a weight
and position: not what remat repeats, nor the scans' and attention's own products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dimba_jax.config import MeshConfig, RunConfig
from dimba_jax.training.figures import peak_flops

sys.path.insert(0, str(Path(__file__).parents[1]))
from recipe_files import recipe  # noqa: E402
from steps import Step  # noqa: E402

RUNS = [
    "240m", "240m unroll", "240m-h", "240m-h unroll", "240m-tran", "240m-tran unroll", "1b3", "1b3-tran",
    "240m remat=none", "240m remat=dots", "240m remat=full", "240m remat=full accumulate=4", "240m accumulate=4",
]  # fmt: skip
AXES = ("data", "fsdp", "tensor", "sequence")


def settings(run: str, rows: int, length: int) -> tuple[RunConfig, MeshConfig]:
    """The config of a run, and its mesh."""
    variant, *changes = run.split()
    config: RunConfig = recipe("diffumamba").VARIANTS[variant]
    mesh = dict.fromkeys(AXES, 1)
    model: dict[str, Any] = {}
    accumulate = 1
    for change in changes:
        name, _, value = change.partition("=")
        if name in AXES:
            mesh[name] = int(value)
        elif name == "remat":
            model["remat"] = value
        elif change == "unroll":
            model["scan_layers"] = False
        elif change == "xla":
            model["implementation"] = "xla"
        elif name == "accumulate":
            accumulate = int(value)
        elif name == "rows":
            rows = int(value)
        else:
            raise SystemExit(f"--runs {run!r}: {change!r} is unknown; see --help")
    whole = replace(
        config,
        model=replace(config.model, **model),
        data=replace(config.data, target_length=length),
        training=replace(config.training, batch_size=rows * mesh["data"] * mesh["fsdp"], accumulate=accumulate),
    )
    return whole, MeshConfig(**mesh)


def measure(run: str, rows: int, length: int, samples: int, steps: int) -> dict[str, Any]:
    """The figures of a run."""
    config, mesh = settings(run, rows, length)
    devices = mesh.data * mesh.fsdp * mesh.tensor * mesh.sequence
    step = Step(config, devices, mesh)
    step.run(2)
    times = [step.run(steps)[0] for _ in range(samples)]
    ms = statistics.median(times)
    peak = peak_flops(jax.devices()[0])
    return {
        "run": run,
        "rows": config.training.batch_size,
        "length": length,
        "devices": devices,
        "remat": config.model.remat,
        "parameters": step.parameters,
        "ms": ms,
        "least": min(times),
        "most": max(times),
        "tokens_per_second": step.tokens / ms * 1e3,
        "utilisation": None if peak is None else step.flops / (ms / 1e3) / (peak * devices),
        "peak_bytes": step.peak_bytes,
        "compile_seconds": step.compile_seconds,
        "first_loss": step.first_loss,
    }


def row(line: dict[str, Any]) -> str:
    """A line of the table."""
    used = "" if line["utilisation"] is None else f"{100 * line['utilisation']:.1f}%"
    return (
        f"| {line['run']} | {line['parameters'] / 1e6:.0f}M | {line['rows']} x {line['length']} | {line['remat']} "
        f"| {line['ms']:.1f} ({line['least']:.1f}-{line['most']:.1f}) | {line['tokens_per_second']:,.0f} | {used} "
        f"| {line['peak_bytes'] / 2**30:.1f} | {line['compile_seconds']:.0f} | {line['first_loss']:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", default=RUNS, help="a variant and changes to it, in quotes")
    parser.add_argument(
        "--rows", type=int, default=16, help="rows of a step, for each device over which they are split"
    )
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=5, help="times taken of each")
    parser.add_argument("--steps", type=int, default=4, help="steps a sample")
    parser.add_argument("--output", type=Path, help="gets a line of JSON for each run")
    options = parser.parse_args()

    device = jax.devices()[0].device_kind
    print(f"{device}, jax {metadata.version('jax')}\n")
    heads = ("run", "parameters", "batch", "remat", "ms a step (least-most)", "tokens/s", "utilisation", "GiB a device")
    print(f"| {' | '.join(heads)} | compile s | first loss |\n" + "|" + "---|" * 10, flush=True)
    for run in options.runs:
        try:
            line = measure(run, options.rows, options.length, options.samples, options.steps)
        except jax.errors.JaxRuntimeError as error:  # out of memory: the other runs' figures are worth having
            print(f"| {run} | {str(error)[:200]} |" + " |" * 8, flush=True)
            line = {"run": run, "error": str(error)[:500]}
        else:
            print(row(line), flush=True)
        if options.output:
            with options.output.open("a") as file:
                file.write(json.dumps({"device": device, "jax": metadata.version("jax")} | line) + "\n")


if __name__ == "__main__":
    main()
