"""The training loop: steps, and between them log lines, checkpoints, validation and sample texts."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.stages import Compiled

from dimba_jax import parallel
from dimba_jax.config import RunConfig
from dimba_jax.plots import loss_curve
from dimba_jax.progress import Progress, progress
from dimba_jax.training.interrupt import Interrupt
from dimba_jax.training.metrics import METRICS_FILE, Metrics
from dimba_jax.training.record import write_run_file
from dimba_jax.training.report import Reporter
from dimba_jax.training.setup import Run, prepare
from dimba_jax.training.state import TrainState
from dimba_jax.training.step import make_train_step

AHEAD = 2  # steps the host may run ahead of the device: enough to keep it busy, few enough to stop soon


class Outcome(NamedTuple):
    state: TrainState
    interrupted: signal.Signals | None  # what stopped the run before its last step


def train(config: RunConfig, workdir: str | Path, *, command: Sequence[str] | None = None) -> Outcome:
    """Trains until config.training.steps, from the workdir's latest checkpoint if it holds one.

    Leaves checkpoints, metrics.jsonl, TensorBoard logs, run.json and loss.png in the workdir. SIGTERM or
    Ctrl-C saves after the step that is running and returns; the same call goes on from there.

    Raises:
      ConfigError, DataError, CheckpointError: as `setup.prepare`.
      TrainingDiverged: a loss that is not finite; the last checkpoint is from before it.
    """
    workdir = Path(workdir).absolute()
    run = prepare(config, workdir)
    if run.start >= config.training.steps:
        run.checkpoints.close()
        _say(f"{workdir} is at step {run.start:,} of {config.training.steps:,} already: nothing to train")
        return Outcome(run.state, None)
    _announce(run)
    first = jax.process_index() == 0
    if first:
        write_run_file(workdir, config, sys.argv if command is None else command, run.start)
    since = time.monotonic()
    with parallel.split_kernels(run.mesh):
        train_step = _compile(run)
    _say(f"compiled the training step in {time.monotonic() - since:.0f} s")
    with (
        parallel.split_kernels(run.mesh),  # for the programs of validation and samples
        Interrupt() as interrupt,
        run.checkpoints,
        Metrics(workdir, after_step=run.start, enabled=first) as metrics,
        progress(config.training.steps, f"train {config.name}", run.start) as bar,
    ):
        _run_steps(run, Reporter(run, metrics, bar), interrupt, bar, train_step)
    if first and '"loss"' in (workdir / METRICS_FILE).read_text(encoding="utf-8"):
        loss_curve(workdir / METRICS_FILE, workdir / "loss.png")
    return Outcome(run.state, interrupt.signal)


def _run_steps(run: Run, report: Reporter, interrupt: Interrupt, bar: Progress, train_step: Compiled) -> None:
    training = run.config.training
    in_flight = deque()
    report.clock.reset()
    for step in range(run.start + 1, training.steps + 1):
        batch, rows = run.feed.take()
        run.state, loss = train_step(run.state, batch, run.base_key)
        run.feed.prefetch()
        in_flight.append(loss)
        if len(in_flight) > AHEAD:
            jax.block_until_ready(in_flight.popleft())
        report.stepped(step, rows)
        bar.update(1)

        def due(every: int, step: int = step) -> bool:
            return step == training.steps or (every > 0 and step % every == 0)

        stop = interrupt.requested(step)
        if due(training.log_every):
            report.log(step)
        if due(training.valid_every):
            report.validate(step)
        if stop or due(training.checkpoint_every):
            report.save(step)  # behind the validation, which may have moved the range that times are drawn from
        if due(training.sample_every):
            report.sample(step)
        if stop:
            if step < training.steps:
                bar.write(f"stopped after step {step:,}, saved; the same command goes on from there")
            return


def _compile(run: Run) -> Compiled:
    """The step's program. Compiled ahead, so that progress and speed are those of steps alone."""
    train_step = make_train_step(run.graphdef, run.optimizer, run.config, parallel.placement(run.mesh, run.state))
    return train_step.lower(run.state, run.feed.ahead(), run.base_key).compile()


def _announce(run: Run) -> None:
    devices = jax.devices()
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    note = f"going on from step {run.start:,}" if run.start else "starting"
    _say(f"{run.config.name}: {note}; {count:,} parameters on {len(devices)} x {devices[0].device_kind}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
