"""Samples texts from a trained model.

    python -m dimba_jax.sample --checkpoint=W --prompt="How do I kill rats?" [--num_samples=3] [--show_trajectory]
    python -m dimba_jax.sample --checkpoint=W --prompt="Once upon a [[3]] there"
    python -m dimba_jax.sample --checkpoint=W --prompt="Once upon a" [--length=128]
    python -m dimba_jax.sample --checkpoint=W --input=in.jsonl --output=out.jsonl

A model of pairs answers the prompt. A model of running text goes on with it up to --length tokens, or fills its
gaps: [[12]] is one of 12 tokens; --prompt="" starts from nothing. A line of the input is a JSON object whose key
`src` is the prompt; the same object is written to the output with its texts under `samples` and the calls of the
network that each took under `network_calls`. A file beside the output (out.run.json) says what it was made with:
checkpoint, settings, seed, versions, devices, commit and command. Sampling options that are not given come from the
checkpoint's config.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dimba_jax import commandline, sampling_flags
from dimba_jax.config import ConfigError, RunConfig, SamplingConfig
from dimba_jax.data.examples import DataError, check_text, parse_json, read_lines
from dimba_jax.environment import of_checkpoint
from dimba_jax.files import write_whole

STAGES = 6  # of a trajectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    logging.basicConfig(format="sample: %(message)s", level=logging.WARNING)
    argv = sys.argv if argv is None else argv
    return commandline.run("sample", __doc__, _parse, lambda options: _run(options, argv), argv)


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.text("checkpoint", None, "workdir of a trained model")
    define.integer("checkpoint_step", None, "step of the checkpoint; the latest unless given")
    define.files(
        "ensemble",
        "further workdirs of masked models, as in A B or A,B, whose distributions are averaged with the checkpoint's; "
        "a step is then a network call of each; they are read at their latest steps",
    )
    define.text("prompt", None, "the prompt, or the beginning of a text, or a text with gaps [[n]]")
    define.text("input", None, "JSONL file of prompts, under the key src")
    define.text("output", None, "JSONL file to write; needed with --input")
    define.integer(
        "length", None, "running text: tokens of a text, the prompt's counted; a training row's unless given"
    )
    define.seed(0, "seed of the draws")
    define.boolean("show_trajectory", False, "print the stages from noise or masks to text; with --prompt")
    define.scan_layers()
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


def _run(options: flags.FlagValues, command: Sequence[str]) -> None:
    if options.prompt is not None:
        check_text(options.prompt, "--prompt")
        rows = {"--prompt": {"src": options.prompt}}
    else:
        rows = _read(Path(options.input))
    output = None if options.output is None else commandline.output_file(options.output, reads=[options.input])
    if output is not None:
        commandline.output_file(str(_run_file(output)), reads=[options.input])

    from dimba_jax.sampling.ensemble import with_others  # here: --help and wrong options need no JAX
    from dimba_jax.sampling.generate import complete, generate
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema, scan_layers=options.scan_layers)
    settings = sampling_flags.settings(model.config, sampling_flags.given(options))
    if options.ensemble is not None:
        model = with_others(
            model, options.checkpoint, options.ensemble, ema=options.ema, scan_layers=options.scan_layers
        )
    running = model.config.data.source == "text"
    if options.length is not None and not running:
        raise ConfigError(f"--length={options.length}: is for models of running text; this one answers prompts")
    for place, row in rows.items():
        if not (running or row["src"].strip()):
            raise DataError(f"{place} is empty: give it some text")
    stages = _stages(model.config, settings, options.length) if options.show_trajectory else 0
    write = functools.partial(complete, length=options.length) if running else generate
    prompts = [row["src"] for row in rows.values()]
    found = write(model, prompts, settings, seed=options.seed, progress=options.input is not None, stages=stages)
    if output is None:
        for line in _stage_lines(found[0].trajectory, found[0].steps):
            print(line)
        print(*found[0].texts, sep="\n", flush=True)
        print(f"network calls: {found[0].network_calls} for each sample", file=sys.stderr)
        return
    lines = [
        json.dumps(row | {"samples": list(of.texts), "network_calls": of.network_calls}, ensure_ascii=False)
        for row, of in zip(rows.values(), found, strict=True)
    ]
    made = of_checkpoint(command, model.config, options.checkpoint, model.step)
    made |= {"seed": options.seed, "length": options.length, "sampling": dataclasses.asdict(settings)}
    made |= {"ensemble": model.others} if model.others else {}
    write_whole({
        output: "".join(line + "\n" for line in lines),
        _run_file(output): json.dumps(made, indent=2, ensure_ascii=False) + "\n",
    })  # fmt: skip


def _run_file(output: Path) -> Path:
    """What says how the file beside it was made."""
    return output.with_name(f"{output.stem}.run.json")


def _stages(config: RunConfig, settings: SamplingConfig, length: int | None) -> int:
    """How many stages to show: STAGES, or as many as there are states between steps."""
    from dimba_jax.sampling.discrete.sample import total_steps

    target = config.data.target_length if length is None else length
    steps = settings.steps if config.process.kind == "gaussian" else total_steps(config, settings, target)
    return min(STAGES, steps + 1)


def _stage_lines(trajectory: Sequence[str], steps: int) -> list[str]:
    """One line a stage: how many steps it has behind it, and its text."""
    if not trajectory:
        return []
    from dimba_jax.sampling.loop import stage_steps

    taken = stage_steps(steps, len(trajectory))
    width = len(str(steps))
    return [f"step {step:>{width}}/{steps}  {text}" for step, text in zip(taken, trajectory, strict=True)] + [""]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file of prompts by where they stand, as messages name it."""
    if not path.is_file():
        raise FileNotFoundError(f"--input={path}: there is no such file")
    rows = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}:{number}")
        if not isinstance(row, dict) or not isinstance(row.get("src"), str):
            raise DataError(f'{path}:{number}: expected an object with a text under "src"')
        rows[f'{path}:{number}: "src"'] = row
    return rows


if __name__ == "__main__":
    sys.exit(main())
