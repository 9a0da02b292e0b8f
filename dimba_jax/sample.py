"""Samples texts from a trained model.

    python -m dimba_jax.sample --checkpoint=W --prompt="How do I kill rats?" [--num_samples=3] [--show_trajectory]
    python -m dimba_jax.sample --checkpoint=W --input=in.jsonl --output=out.jsonl

A line of the input is a JSON object whose key `src` is the prompt; the same object is written to the
output with its texts under `samples`. Sampling options that are not given come from the checkpoint's config.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dimba_jax.checkpoint import CheckpointError
from dimba_jax.config import ConfigError, RunConfig, SamplingConfig, from_config_dict, to_dict

SAMPLING_FLAGS = (
    "sampler", "steps", "eta", "guidance", "clamp_from", "temperature", "num_samples", "batch_size",
    "early_exit", "ema",
)  # fmt: skip
STAGES = 6  # of a trajectory


class InputError(ValueError):
    """A prompt or a line of the input file that cannot be used."""


USER_ERRORS = (
    flags.Error, ConfigError, CheckpointError, InputError,
    FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. An error of the user's is one line, without a traceback."""
    logging.basicConfig(format="sample: %(message)s", level=logging.WARNING)
    try:
        options = _parse(sys.argv if argv is None else argv)
        if options.help:
            print(f"{__doc__}\n{options.get_help()}")
            return 0
        _run(options)
    except USER_ERRORS as error:
        print(f"sample: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _define_flags() -> flags.FlagValues:
    """The flags, in a set of their own: the entry modules share names and may live in one process."""
    values = flags.FlagValues()

    def define(kind: Callable[..., Any], name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(flags.DEFINE_string, "checkpoint", None, "workdir of a trained model")
    define(flags.DEFINE_integer, "checkpoint_step", None, "step of the checkpoint; the latest unless given")
    define(flags.DEFINE_string, "prompt", None, "the prompt")
    define(flags.DEFINE_string, "input", None, "JSONL file of prompts, under the key src")
    define(flags.DEFINE_string, "output", None, "JSONL file to write; needed with --input")
    define(flags.DEFINE_integer, "seed", 0, "seed of the noise")
    define(flags.DEFINE_bool, "show_trajectory", False, "print the stages from noise to text; with --prompt")
    define(flags.DEFINE_integer, "num_samples", None, "texts a prompt; this and all below default to the checkpoint's")
    define(flags.DEFINE_string, "sampler", None, "ddpm, ddim or dpmpp")
    define(flags.DEFINE_integer, "steps", None, "denoising steps, up to the process's timesteps")
    define(flags.DEFINE_float, "eta", None, "DDIM's share of ancestral noise")
    define(flags.DEFINE_float, "guidance", None, "classifier-free guidance; 1 is off")
    define(flags.DEFINE_float, "clamp_from", None, "round predictions to embeddings at t up to this; 0: never")
    define(flags.DEFINE_float, "temperature", None, "standard deviation of the starting noise")
    define(flags.DEFINE_integer, "batch_size", None, "rows of one compiled call")
    define(flags.DEFINE_integer, "early_exit", None, "stop after so many steps without a changed token; 0: never")
    define(flags.DEFINE_bool, "ema", None, "take the averaged parameters")
    define(flags.DEFINE_bool, "help", False, "show this help")
    return values


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    options = _define_flags()
    rest = options(list(argv))[1:]
    if options.help:
        return options
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}: every option is --name=value")
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
        raise InputError("--prompt is empty: give it some text")
    if options.output is not None:
        _check_output(Path(options.output))

    from dimba_jax.sampling.generate import generate  # here: --help and wrong options need no JAX
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema)
    settings = _settings(model.config, options)
    stages = min(STAGES, settings.steps + 1) if options.show_trajectory else 0
    prompts = [row["src"] for row in rows]
    found = generate(model, prompts, settings, seed=options.seed, progress=options.input is not None, stages=stages)
    if options.output is None:
        for line in _stage_lines(found[0].trajectory, settings.steps):
            print(line)
        print(*found[0].texts, sep="\n")
        return
    lines = [
        json.dumps(row | {"samples": list(of.texts)}, ensure_ascii=False) for row, of in zip(rows, found, strict=True)
    ]
    _write(Path(options.output), lines)


def _settings(config: RunConfig, options: flags.FlagValues) -> SamplingConfig:
    """The checkpoint's sampling settings with the given flags in their place, checked against its process."""
    given = {name: options[name].value for name in SAMPLING_FLAGS if options[name].value is not None}
    values = to_dict(config)
    return from_config_dict(values | {"sampling": values["sampling"] | given}).sampling


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
                raise InputError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict) or not isinstance(row.get("src"), str):
                raise InputError(f'{path}:{number}: expected an object with a text under "src"')
            if not row["src"].strip():
                raise InputError(f'{path}:{number}: "src" is empty: give it some text')
            rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no prompts: expected a JSON object with the key src on each line")
    return rows


def _check_output(path: Path) -> None:
    """Finds out before the sampling, not after it, that its result has no place to go."""
    if path.is_dir():
        raise IsADirectoryError(f"--output={path} is a folder: name a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output={path}: there is no folder {path.absolute().parent}; create it first")


def _write(path: Path, lines: Sequence[str]) -> None:
    """Writes beside the place and moves it there: an older file is whole or replaced."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(draft, path)


if __name__ == "__main__":
    sys.exit(main())
