"""Trains a model from a recipe.

    python -m dimba_jax.train --config=configs/qqp.py --workdir=W [--seed=N] [--config.data.path=DIR] [--config.KEY=…]

Started again with the same workdir it goes on from the latest checkpoint. SIGTERM and Ctrl-C save and
stop. A recipe takes an argument behind a colon: --config=configs/qqp.py:smoke.

Over several processes, each started with the same command: with --distributed, JAX finds the others (Slurm, Open MPI,
Kubernetes, TPU pods); where it knows no cluster, say who they are: --coordinator_address=HOST:PORT --num_processes=N
--process_id=I. Without any of them, Slurm, Open MPI, TPU pods on GKE and JAX_COORDINATOR_ADDRESS are still recognised.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence

from absl import flags

from dimba_jax import commandline
from dimba_jax.config import from_config_dict


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 also after SIGTERM, 130 after Ctrl-C."""
    argv = sys.argv if argv is None else argv
    return commandline.run("train", __doc__, _parse, lambda options: _run(options, argv), argv)


def _run(options: flags.FlagValues, command: Sequence[str]) -> int:
    config = from_config_dict(options.config)
    if options.seed is not None:
        config = dataclasses.replace(config, seed=options.seed)
    workdir = commandline.workdir(options.workdir)

    # only now, so that a mistyped flag is answered at once
    import jax

    from dimba_jax import distributed
    from dimba_jax.training.loop import train

    distributed.initialize(**commandline.given_distributed(options))
    try:
        outcome = train(config, workdir, command=command)
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        distributed.leave(commandline.say("train", error))
    return 130 if outcome.interrupted == signal.SIGINT else 0


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.config("recipe, as in configs/qqp.py:smoke", argv)
    define.text("workdir", None, "folder for checkpoints and logs")
    define.distributed()
    define.seed(None, "seed of all that is drawn, in place of config.seed")
    options = define.parse(argv)
    if options.help:
        return options
    for name in ("config", "workdir"):
        if options[name].value is None:
            raise flags.Error(f"--{name} is missing: python -m dimba_jax.train --config=RECIPE --workdir=FOLDER")
    return options


if __name__ == "__main__":
    sys.exit(main())
