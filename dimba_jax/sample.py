"""Samples texts from a trained model.

    python -m dimba_jax.sample --checkpoint=W --prompt="How do I kill rats?" [--num_samples=3] [--show_trajectory]
    python -m dimba_jax.sample --checkpoint=W --input=in.jsonl --output=out.jsonl

A line of the input is a JSON object whose key `src` is the prompt; the same object is written to the
output with its texts under `samples`. Sampling options that are not given come from the checkpoint's config.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dimba_jax import commandline
from dimba_jax.data.examples import DataError
from dimba_jax.files import write_whole

STAGES = 6  # of a trajectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    logging.basicConfig(format="sample: %(message)s", level=logging.WARNING)
    return commandline.run("sample", __doc__, _parse, _run, argv)


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.text("checkpoint", None, "workdir of a trained model")
    define.integer("checkpoint_step", None, "step of the checkpoint; the latest unless given")
    define.text("prompt", None, "the prompt")
    define.text("input", None, "JSONL file of prompts, under the key src")
    define.text("output", None, "JSONL file to write; needed with --input")
    define.integer("seed", 0, "seed of the noise")
    define.boolean("show_trajectory", False, "print the stages from noise to text; with --prompt")
    define.sampling()
    options = define.parse(argv)
    if options.help:
        return options
    if options.checkpoint is None:
        raise flags.Error("--checkpoint=WORKDIR is missing: the workdir of a training run")
    if (options.prompt is None) == (options.input is None):
        raise flags.Error("give either --prompt=TEXT or --input=FILE")
    if (options.input is None) != (options.output is None):
        raise flags.Error("--input=FILE and --output=FILE go together")
    if options.show_trajectory and options.prompt is None:
        raise flags.Error("--show_trajectory needs --prompt: it shows the stages of one text")
    return options


def _run(options: flags.FlagValues) -> None:
    rows = [{"src": options.prompt}] if options.prompt is not None else _read(Path(options.input))
    if not str(rows[0]["src"]).strip():
        raise DataError("--prompt is empty: give it some text")
    output = None if options.output is None else commandline.output_file(options.output)

    from dimba_jax.sampling.generate import generate  # here: --help and wrong options need no JAX
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema)
    settings = commandline.sampling_settings(model.config, commandline.given_sampling(options))
    stages = min(STAGES, settings.steps + 1) if options.show_trajectory else 0
    prompts = [row["src"] for row in rows]
    found = generate(model, prompts, settings, seed=options.seed, progress=options.input is not None, stages=stages)
    if output is None:
        for line in _stage_lines(found[0].trajectory, settings.steps):
            print(line)
        print(*found[0].texts, sep="\n")
        return
    lines = [
        json.dumps(row | {"samples": list(of.texts)}, ensure_ascii=False) for row, of in zip(rows, found, strict=True)
    ]
    write_whole({output: "".join(line + "\n" for line in lines)})


def _stage_lines(trajectory: Sequence[str], steps: int) -> list[str]:
    """One line a stage: how many steps it has behind it, and its text."""
    if not trajectory:
        return []
    from dimba_jax.sampling.loop import stage_steps

    taken = stage_steps(steps, len(trajectory))
    width = len(str(steps))
    return [f"step {step:>{width}}/{steps}  {text}" for step, text in zip(taken, trajectory, strict=True)] + [""]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"--input={path}: there is no such file")
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # bad JSON or bad UTF-8
                raise DataError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict) or not isinstance(row.get("src"), str):
                raise DataError(f'{path}:{number}: expected an object with a text under "src"')
            if not row["src"].strip():
                raise DataError(f'{path}:{number}: "src" is empty: give it some text')
            rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no prompts: expected a JSON object with the key src on each line")
    return rows


if __name__ == "__main__":
    sys.exit(main())
