"""Draws a denoising strip: one sentence at several stages from noise or masks to text, as PNG and as text.

    python -m dimba_jax.strip --checkpoint=W --output=strip.png [--prompt=TEXT] [--stages=6] [--seed=0]

Without a prompt it takes the first of the test split; a model of running text starts from nothing, or goes on with
the prompt, or fills its gaps `[[n]]`. The text is written beside the PNG (strip.txt) and printed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from dimba_jax import commandline
from dimba_jax.config import ConfigError
from dimba_jax.data.examples import check_text

if TYPE_CHECKING:
    from dimba_jax.sampling.load import LoadedModel

STAGES = 6


def draw_strip(model: LoadedModel, prompt: str, png: str | Path, *, stages: int = STAGES, seed: int = 0) -> str:
    """Samples one text for the prompt, draws its stages, and returns them as text.

    A stage's label is the share of the steps that is left: t = 1.00 is noise or masks alone, t = 0.00 the
    finished text. A position that is still masked shows as a box.

    Raises:
      ConfigError: fewer than two stages, or more than the sampler passes through; an empty prompt of a pair.
    """
    from dimba_jax.plots import denoising_strip, strip_text
    from dimba_jax.sampling.generate import complete, generate
    from dimba_jax.sampling.loop import stage_steps

    settings = dataclasses.replace(model.config.sampling, num_samples=1, early_exit=0)
    write = complete if model.config.data.source == "text" else generate
    (made,) = write(model, [prompt], settings, seed=seed, stages=stages)
    labels = [f"t = {1 - step / made.steps:.2f}" for step in stage_steps(made.steps, stages)]
    found = list(zip(labels, made.trajectory, strict=True))
    denoising_strip(found, png, prompt=prompt)
    return strip_text(found, prompt=prompt)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run("strip", __doc__, _parse, _run, argv)


def _run(options: flags.FlagValues) -> None:
    output = commandline.output_file(options.output, suffix=".png")
    check_text(options.prompt or "", "--prompt")

    from dimba_jax.data.sources import load_split
    from dimba_jax.sampling.load import load

    model = load(options.checkpoint)
    running = model.config.data.source == "text"
    prompt = options.prompt
    if prompt is None:
        prompt = "" if running else load_split(model.config.data, "test")[0].source
    if not (running or prompt.strip()):
        raise ConfigError("--prompt is empty: give it some text, or leave it out")
    print(draw_strip(model, prompt, output, stages=options.stages, seed=options.seed), end="")


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.text("checkpoint", None, "workdir of a trained model")
    define.text("output", None, "the PNG file to write")
    define.text("prompt", None, "the prompt; the first of the test split, or none for running text, unless given")
    define.integer("stages", STAGES, "stages to show")
    define.seed(0, "seed of the noise")
    options = define.parse(argv)
    if options.help:
        return options
    for name in ("checkpoint", "output"):
        if options[name].value is None:
            raise flags.Error(f"--{name} is missing: python -m dimba_jax.strip --checkpoint=WORKDIR --output=FILE.png")
    return options


if __name__ == "__main__":
    sys.exit(main())
