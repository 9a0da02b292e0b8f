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
import importlib.util
import json
import statistics
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dimba_jax.config import RunConfig
from dimba_jax.diffusion import make_process, make_timestep_sampler
from dimba_jax.models.build import abstract_denoiser, make_denoiser
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.state import TrainState
from dimba_jax.training.step import make_train_step

CONFIGS = Path(__file__).parents[2] / "configs"
SPECIAL = 8  # tokens left out of the random text: padding, mask and their like


@dataclass(frozen=True)
class Case:
    """A recipe and its variant; rows a batch, positions a row and layers, None for the recipe's own."""

    recipe: str
    variant: str = ""
    rows: int | None = None
    length: int | None = None
    layers: int | None = None

    def config(self, implementation: str) -> RunConfig:
        spec = importlib.util.spec_from_file_location(self.recipe, CONFIGS / f"{self.recipe}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config: RunConfig = getattr(module, "VARIANTS", {}).get(self.variant) or module.MEDIUM
        config = replace(config, model=replace(config.model, implementation=implementation))
        if self.rows is not None:
            config = replace(config, training=replace(config.training, batch_size=self.rows))
        if self.length is not None:
            config = replace(config, data=replace(config.data, target_length=self.length))
        if self.layers is not None:
            config = replace(config, model=replace(config.model, layers=self.layers))
        return config


CASES = {
    "qqp_masked": Case("qqp_masked"),  # Mamba-2, rows of 64
    "mambadiff_qqp": Case("mambadiff_qqp"),  # Mamba (S6), rows of 64
    "diffumamba_1024": Case("diffumamba", "240m", rows=16, length=1024),
    "diffumamba_8192": Case("diffumamba", "240m", rows=2, length=8192),
    "diffumamba_12_1024": Case("diffumamba", "240m", rows=16, length=1024, layers=12),
    "diffumamba_12_8192": Case("diffumamba", "240m", rows=2, length=8192, layers=12),
    "tiny": Case("diffumamba", "tiny", rows=4, length=128),
}


class Step:
    """A compiled step and the state it goes on from."""

    def __init__(self, config: RunConfig) -> None:
        vocabulary = config.tokenizer.vocab_size
        rows, length = config.training.batch_size, config.data.source_length + config.data.target_length
        graphdef, _ = abstract_denoiser(config, vocabulary)
        optimizer = make_optimizer(config.optimizer, config.training.steps)

        def start(key: jax.Array) -> TrainState:
            return TrainState.start(
                nnx.to_pure_dict(nnx.state(make_denoiser(config, vocabulary, nnx.Rngs(key)), nnx.Param)),
                optimizer,
                make_process(config.process, vocabulary),
                make_timestep_sampler(config.process),
            )

        self.tokens = rows * length
        self._state = jax.jit(start)(jax.random.key(0))
        self._batch = jax.device_put(_batch(rows, length, config.data.source_length, vocabulary))
        self._key = jax.random.key(1)
        began = time.monotonic()
        step = make_train_step(graphdef, optimizer, config)
        self._step = step.lower(self._state, self._batch, self._key).compile()
        self.compile_seconds = time.monotonic() - began
        plan = self._step.memory_analysis()
        sizes = plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes
        self.peak_bytes = sum(sizes) - plan.alias_size_in_bytes
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        self.first_loss = self.run(1)[1]

    def run(self, steps: int) -> tuple[float, float]:
        """Milliseconds a step, and the last loss."""
        began = time.perf_counter()
        for _ in range(steps):
            self._state, report = self._step(self._state, self._batch, self._key)
        loss = float(report.loss)
        return 1e3 * (time.perf_counter() - began) / steps, loss


def _batch(rows: int, length: int, source: int, vocabulary: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(min(SPECIAL, vocabulary // 2), vocabulary, (rows, length)).astype(np.int32),
        "target": np.broadcast_to(np.arange(length) >= source, (rows, length)).copy(),
        "valid": np.ones((rows, length), bool),
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
