"""Trains a model from a recipe.

    python -m dimba_jax.train --config=configs/qqp.py --workdir=W [--config.data.path=DIR] [--config.KEY=VALUE …]

Started again with the same workdir it goes on from the latest checkpoint. SIGTERM and Ctrl-C save and
stop. A recipe takes an argument behind a colon: --config=configs/qqp.py:smoke.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from dimba_jax.config import ConfigError, from_config_dict


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 also after SIGTERM, 130 after Ctrl-C, 1 on a user's error."""
    argv = sys.argv if argv is None else argv
    try:
        options = _parse(argv)
        if options.help:
            print(f"{__doc__}\n{options.get_help()}")
            return 0
        config = from_config_dict(options.config)
    except (flags.Error, ConfigError, OSError) as error:
        return _failed(error)

    # only now, so that a mistyped flag is answered at once
    from dimba_jax.checkpoint import CheckpointError
    from dimba_jax.data.examples import DataError
    from dimba_jax.parallel import maybe_initialize_distributed
    from dimba_jax.training.loop import train
    from dimba_jax.training.report import TrainingDiverged

    maybe_initialize_distributed()
    try:
        outcome = train(config, options.workdir, command=argv)
    except (ConfigError, DataError, CheckpointError, TrainingDiverged, OSError) as error:
        return _failed(error)
    return 130 if outcome.interrupted == signal.SIGINT else 0


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()  # a set of its own: the entry modules may live in one process
    config_flags.DEFINE_config_file(
        "config", None, "recipe, as in configs/qqp.py:smoke", flag_values=values, sys_argv=list(argv)
    )
    flags.DEFINE_string("workdir", None, "folder for checkpoints and logs", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values)
    try:
        rest = values(list(argv))[1:]
    except (AttributeError, KeyError) as error:  # a --config.key that the recipe lacks; the text names the nearest
        raise ConfigError(f"--config has no such key: {' '.join(str(error.args[0]).split())}") from None
    if values.help:
        return values
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}: every option is --name=value")
    for name in ("config", "workdir"):
        if values[name].value is None:
            raise flags.Error(f"--{name} is missing: python -m dimba_jax.train --config=RECIPE --workdir=FOLDER")
    return values


def _failed(error: Exception) -> int:
    print(f"train: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
