"""Runs tasks of EleutherAI's lm-evaluation-harness on a checkpoint.

    pip install -e '.[harness]' -c constraints.txt
    python -m dimba_jax.evals.harness --checkpoint=W --tasks=lambada_openai,piqa --limit=100 --output=harness.json
    python -m dimba_jax.evals.harness --checkpoint=W --tasks=mine --include_path=FOLDER_OF_YAML

Prints the harness's table and writes its results, without the single samples, as JSON. Log-likelihoods are exact
for an autoregressive model; for a masked one they are means of --draws draws of a lower bound, and the results
say so. Sampling options are for tasks that generate; those not given come from the checkpoint's config. Tasks of
the harness's own need its data sets, which it downloads; a task of yours may read local files.

The harness's own command knows these models too, once told to import them:
    python -c "import dimba_jax.evals.harness_model, lm_eval.__main__ as m; m.cli_evaluate()" \\
        run --model dimba_jax --model_args checkpoint=W,draws=64 --tasks piqa
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from dimba_jax import commandline, sampling_flags
from dimba_jax.config import ConfigError
from dimba_jax.errors import UserError
from dimba_jax.files import write_whole


class HarnessError(UserError, RuntimeError):
    """The harness is not installed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run("harness", __doc__, _parse, _run, argv)


def _run(options: flags.FlagValues) -> None:
    run(options)


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.text("checkpoint", None, "workdir of a trained model")
    define.integer("checkpoint_step", None, "step of the checkpoint; the latest unless given")
    define.listing("tasks", [], "tasks of the harness, by name")
    define.text("include_path", None, "folder with tasks of your own (YAML)")
    define.integer("num_fewshot", None, "examples in front of each question; the task's own number unless given")
    define.integer("limit", None, "only the first so many documents of each task", lower_bound=1)
    define.integer("draws", 128, "Monte-Carlo draws of a bound, for each continuation", lower_bound=1)
    define.seed(0, "seed of the draws and of sampling")
    define.text("output", None, "where to write the results (JSON)")
    define.scan_layers()
    define.sampling()
    options = define.parse(argv)
    if options.help:
        return options
    if options.checkpoint is None:
        raise flags.Error("--checkpoint=WORKDIR is missing: the workdir of a training run")
    if not options.tasks:
        raise flags.Error("--tasks=A,B is missing: names of tasks of the harness, or of your own under --include_path")
    return options


def run(options: flags.FlagValues) -> dict[str, Any]:
    """Evaluates the tasks, prints the table and writes the results, if there is an output; returns them.

    Raises:
      HarnessError: lm-eval is not installed.
      ConfigError: an unknown task, or a model without likelihoods.
      FileNotFoundError: no checkpoint there.
    """
    output = None if options.output is None else commandline.output_file(options.output)
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.utils import handle_non_serializable, make_table  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise HarnessError(f"this needs the package lm-eval ({error}): pip install -e '.[harness]'") from None
    from dimba_jax.evals.harness_model import HarnessModel
    from dimba_jax.sampling.load import load

    manager = _tasks(options.tasks, options.include_path)
    model = load(options.checkpoint, step=options.checkpoint_step, ema=options.ema, scan_layers=options.scan_layers)
    make: Any = HarnessModel  # of a class that is there only with the package
    wrapped = make(
        options.checkpoint,
        model=model,
        settings=sampling_flags.settings(model.config, sampling_flags.given(options)),
        draws=options.draws,
        seed=options.seed,
        batch_size=options.batch_size or 32,
    )
    evaluate: Any = lm_eval.simple_evaluate  # decorated, and so untyped
    results = evaluate(
        model=wrapped,
        tasks=list(options.tasks),
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        log_samples=False,
    )
    if output is not None:
        write_whole({output: json.dumps(results, indent=2, ensure_ascii=False, default=handle_non_serializable) + "\n"})
    info = wrapped.get_model_info()
    print(make_table(results))
    if info["loglikelihood"] != "exact":
        error = info["mean_standard_error_nats"]
        print(
            f"log-likelihoods are lower bounds, means of {info['draws']} draws"
            + ("" if error is None else f" with a standard error of {error:.3g} nats on average")
        )
    return results


def _tasks(names: Sequence[str], include_path: str | None) -> Any:
    """The harness's index of tasks; reading its own takes a while, and is left out where the user's suffice."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        where = f" and there is none in {include_path}" if include_path else "; --include_path=FOLDER adds your own"
        raise ConfigError(f"--tasks={unknown[0]}: the harness has no task of this name{where}")
    return manager


if __name__ == "__main__":
    sys.exit(main())
