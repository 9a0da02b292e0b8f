"""Draws a denoising strip: one sentence at several stages from noise to text, as PNG and as text.

    python -m dimba_jax.strip --checkpoint=W --output=strip.png [--prompt=TEXT] [--stages=6] [--seed=0]

Without a prompt it takes the first of the test split. The text is written beside the PNG (strip.txt) and printed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from dimba_jax.checkpoint import CheckpointError
from dimba_jax.config import ConfigError
from dimba_jax.data.examples import DataError

if TYPE_CHECKING:
    from dimba_jax.sampling.load import LoadedModel

STAGES = 6
USER_ERRORS = (flags.Error, ConfigError, CheckpointError, DataError, OSError)


def draw_strip(model: LoadedModel, prompt: str, png: str | Path, *, stages: int = STAGES, seed: int = 0) -> str:
    """Samples one text for the prompt, draws its stages, and returns them as text.

    A stage's label is the noise that is left: t = 1.00 is noise alone, t = 0.00 the finished text.

    Raises:
      ConfigError: fewer than two stages, or more than the sampler passes through.
      ValueError: an empty prompt.
    """
    from dimba_jax.plots import denoising_strip, strip_text
    from dimba_jax.sampling.generate import generate
    from dimba_jax.sampling.loop import stage_steps

    settings = dataclasses.replace(model.config.sampling, num_samples=1, early_exit=0)
    if not 2 <= stages <= settings.steps + 1:
        raise ConfigError(f"stages={stages}: with {settings.steps} sampling steps take from 2 to {settings.steps + 1}")
    (made,) = generate(model, [prompt], settings, seed=seed, stages=stages)
    taken = stage_steps(settings.steps, stages)
    labels = [f"t = {1 - step / settings.steps:.2f}" for step in taken]
    found = list(zip(labels, made.trajectory, strict=True))
    denoising_strip(found, png, prompt=prompt)
    return strip_text(found, prompt=prompt)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. An error of the user's is one message, without a traceback."""
    try:
        options = _parse(sys.argv if argv is None else argv)
        if options.help:
            print(f"{__doc__}\n{options.get_help()}")
            return 0
        from dimba_jax.data.sources import load_split
        from dimba_jax.sampling.load import load

        model = load(options.checkpoint)
        prompt = options.prompt if options.prompt is not None else load_split(model.config.data, "test")[0].source
        if not prompt.strip():
            raise ConfigError("--prompt is empty: give it some text, or leave it out")
        print(draw_strip(model, prompt, options.output, stages=options.stages, seed=options.seed), end="")
    except USER_ERRORS as error:
        print(f"strip: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()  # a set of its own: the entry modules may live in one process
    flags.DEFINE_string("checkpoint", None, "workdir of a trained model", flag_values=values)
    flags.DEFINE_string("output", None, "the PNG file to write", flag_values=values)
    flags.DEFINE_string("prompt", None, "the prompt; the first of the test split unless given", flag_values=values)
    flags.DEFINE_integer("stages", STAGES, "stages to show", flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of the noise", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values)
    rest = values(list(argv))[1:]
    if values.help:
        return values
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}: every option is --name=value")
    for name in ("checkpoint", "output"):
        if values[name].value is None:
            raise flags.Error(f"--{name} is missing: python -m dimba_jax.strip --checkpoint=WORKDIR --output=FILE.png")
    if not Path(values.output).absolute().parent.is_dir():
        raise flags.Error(f"--output={values.output}: there is no folder {Path(values.output).absolute().parent}")
    return values


if __name__ == "__main__":
    sys.exit(main())
