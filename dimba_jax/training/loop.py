"""The training loop: steps, and between them log lines, checkpoints, validation and sample texts."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.stages import Compiled

from dimba_jax import parallel
from dimba_jax.config import RunConfig
from dimba_jax.models.build import kernels_asked_for
from dimba_jax.plots import loss_curve
from dimba_jax.progress import Progress, progress
from dimba_jax.training.interrupt import Interrupt
from dimba_jax.training.metrics import METRICS_FILE, Metrics
from dimba_jax.training.record import write_run_file
from dimba_jax.training.report import Reporter
from dimba_jax.training.setup import Run, prepare
from dimba_jax.training.state import TrainState
from dimba_jax.training.step import make_train_step
from dimba_jax.training.watch import Watch


class Outcome(NamedTuple):
    state: TrainState
    interrupted: signal.Signals | None  # what stopped the run before its last step


def train(config: RunConfig, workdir: str | Path, *, command: Sequence[str] | None = None) -> Outcome:
    """Trains until config.training.steps, from the workdir's latest checkpoint if it holds one.

    Leaves checkpoints, metrics.jsonl, TensorBoard logs, run.json and loss.png in the workdir, and incidents.jsonl where
    steps were skipped or losses rose suddenly. SIGTERM or Ctrl-C saves after the step that is running and returns; the
    same call goes on from there.

    Raises:
      ConfigError, DataError, CheckpointError: as `setup.prepare`.
      CheckpointError: a checkpoint could not be written; those from before it are as they were.
      TrainingDiverged: losses or gradients that are not finite, too many in a row.
    """
    workdir = Path(workdir).absolute()
    with Interrupt() as interrupt:
        run = prepare(config, workdir)
        with contextlib.closing(run.feed), run.checkpoints:
            if run.start >= config.training.steps:
                _say(f"{workdir} is at step {run.start:,} of {config.training.steps:,} already: nothing to train")
                return Outcome(run.state, None)
            _announce(run)
            _train(run, interrupt, sys.argv if command is None else command)
        return Outcome(run.state, interrupt.signal)


def _train(run: Run, interrupt: Interrupt, command: Sequence[str]) -> None:
    workdir, config = run.workdir, run.config
    first = jax.process_index() == 0
    if first:
        write_run_file(workdir, config, command, run.start)
    if not interrupt.early():
        since = time.monotonic()
        with parallel.split_kernels(run.mesh):
            train_step = _compile(run)
        _say(f"compiled the training step in {time.monotonic() - since:.0f} s")
    if interrupt.early():
        _say(f"stopped before step {run.start + 1:,}, with nothing to save; the same command goes on from there")
        return
    with (
        parallel.split_kernels(run.mesh),  # for the programs of validation and samples
        Metrics(workdir, after_step=run.start, enabled=first) as metrics,
        progress(config.training.steps, f"train {config.name}", run.start) as bar,
        Watch(run, bar) as watch,
    ):
        _run_steps(run, Reporter(run, metrics, watch, bar), watch, interrupt, bar, train_step)
    if first and '"loss"' in (workdir / METRICS_FILE).read_text(encoding="utf-8"):
        loss_curve(workdir / METRICS_FILE, workdir / "loss.png")


def _run_steps(
    run: Run, report: Reporter, watch: Watch, interrupt: Interrupt, bar: Progress, train_step: Compiled
) -> None:
    training = run.config.training
    report.clock.reset()
    for step in range(run.start + 1, training.steps + 1):
        batch, rows = run.feed.take()
        run.state, said = train_step(run.state, batch, run.base_key, run.taught.teacher)
        run.feed.prefetch()
        watch.add(step, rows, said)
        run.checkpoints.raise_failure()
        report.clock.steps += 1
        bar.update(1)

        def due(every: int, step: int = step) -> bool:
            return step == training.steps or (every > 0 and step % every == 0)

        stop = interrupt.requested(step)
        if due(training.log_every):
            report.log(step)
        if due(training.valid_every):
            report.validate(step)
        if stop or due(training.checkpoint_every):
            # behind the validation, which may have moved the range that times are drawn from
            report.save(step, last=stop or step == training.steps)
        if due(training.sample_every):
            report.sample(step)
        if stop:
            if step < training.steps:
                bar.write(f"stopped after step {step:,}, saved; the same command goes on from there")
            return


def _compile(run: Run) -> Compiled:
    """The step's program. Compiled ahead, so that progress and speed are those of steps alone."""
    train_step = make_train_step(run.graphdef, run.optimizer, run.config, parallel.placement(run.mesh, run.state))
    with kernels_asked_for(run.config):
        lowered = train_step.lower(run.state, run.feed.ahead(), run.base_key, run.taught.teacher)
    return lowered.compile()


def _announce(run: Run) -> None:
    devices = jax.devices()
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    note = f"going on from step {run.start:,}" if run.start else "starting"
    _say(f"{run.config.name}: {note}; {count:,} parameters on {len(devices)} x {devices[0].device_kind}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
