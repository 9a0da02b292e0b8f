"""An eye on every step, some steps behind the device: what was skipped, and losses far above what is usual."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from dimba_jax import parallel
from dimba_jax.errors import UserError
from dimba_jax.progress import Progress
from dimba_jax.training.figures import StepReport
from dimba_jax.training.metrics import drop_after
from dimba_jax.training.setup import Run

INCIDENTS_FILE = "incidents.jsonl"
AHEAD = 2  # steps the host may run ahead of the device: enough to keep it busy, few enough to stop soon


class TrainingDiverged(UserError, RuntimeError):
    """Losses or gradients that are not finite; the message names the steps, their rows and the last checkpoint."""


class Watch:
    """Looks at the reports of steps, writes a line of `incidents.jsonl` for each that is out of the ordinary.

    A context manager. A line is of a skipped step or of a loss spike, with the ids of all rows of the batch; those
    of steps after the one the run goes on from are dropped. It is written by the first process.
    """

    def __init__(self, run: Run, bar: Progress):
        self._run, self._bar = run, bar
        self._ahead: deque[tuple[int, np.ndarray, StepReport]] = deque()
        self._lines: TextIO | None = None
        self.path: Path = run.workdir / INCIDENTS_FILE
        self.skipping = bool(int(run.state.skipped_in_a_row))  # whether the last step looked at was skipped

    def __enter__(self) -> Watch:
        if jax.process_index() == 0:
            drop_after(self.path, self._run.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()

    def add(self, step: int, rows: np.ndarray, report: StepReport) -> None:
        """Notes a step that was started, with the ids of this process's rows; waits for the one AHEAD before it.

        Raises:
          TrainingDiverged: see `catch_up`.
        """
        for value in report:
            value.copy_to_host_async()
        self._ahead.append((step, rows, report))
        self.catch_up(AHEAD)

    def catch_up(self, ahead: int = 0) -> None:
        """Waits for all steps but the last `ahead`, and looks at what they report.

        Raises:
          TrainingDiverged: training.max_skipped_steps in a row were skipped.
        """
        while len(self._ahead) > ahead:
            self._look(*self._ahead.popleft())

    def _look(self, step: int, rows: np.ndarray, report: StepReport) -> None:
        in_a_row, loss = int(report.skipped_in_a_row), float(report.loss)
        self.skipping = in_a_row > 0
        if self.skipping:
            self._skipped(step, rows, report, in_a_row)
        elif found := self._run.usual.spike(loss):
            usual, spread = found
            ids, losses = _all(rows), np.asarray(report.row_loss)
            worst = ids[np.argsort(-losses, kind="stable")[:8]]
            line = {"kind": "spike", "loss": loss, "usual_loss": usual, "usual_spread": spread}
            self._write(step, line | {"worst_rows": worst.tolist(), "rows": ids.tolist()})
            self._bar.write(
                f"step {step:,}: loss {loss:.4g}, where {usual:.4g} is usual; most of rows {_some(worst)} "
                f"({self.path.name} has all)"
            )

    def _skipped(self, step: int, rows: np.ndarray, report: StepReport, in_a_row: int) -> None:
        ids = _all(rows)
        bad = ids[~np.isfinite(np.asarray(report.row_loss))]
        numbers = {"loss": _number(report.loss), "grad_norm": _number(report.grad_norm)}
        line = {"kind": "skipped", **numbers, "in_a_row": in_a_row}
        self._write(step, line | {"bad_rows": bad.tolist(), "rows": ids.tolist()})
        what = f"the loss of rows {_some(bad)} of the training split is" if bad.size else "the gradient is"
        self._bar.write(f"step {step:,} skipped: {what} not finite")
        most = self._run.config.training.max_skipped_steps
        if in_a_row < most:
            return
        saved = self._run.checkpoints.latest_step()
        left = "there is no checkpoint from before" if saved is None else f"the last checkpoint is of step {saved}"
        first = step - in_a_row + 1
        which = f"step {step}" if first == step else f"steps {first} to {step}"
        raise TrainingDiverged(
            f"{which}: the loss or the gradient is not finite (config.training.max_skipped_steps={most} in a row), so "
            f"training stopped; in step {step} {what} not finite; {self.path} has the rows of each, and {left}. "
            "Try a lower config.optimizer.learning_rate, a longer warmup_steps or a smaller clip_norm"
        )

    def _write(self, step: int, line: dict[str, Any]) -> None:
        if jax.process_index() != 0:
            return
        if self._lines is None:
            self._lines = self.path.open("a", encoding="utf-8")
        self._lines.write(json.dumps({"step": step} | line) + "\n")
        self._lines.flush()


def _all(rows: np.ndarray) -> np.ndarray:
    """The ids of the whole batch, in its order, from those of each process."""
    return np.concatenate([np.asarray(part, np.int64) for part in parallel.gather_json(rows.tolist())])


def _number(value: jax.Array) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def _some(ids: np.ndarray) -> str:
    shown = ", ".join(map(str, ids[:8]))
    return f"{shown} and {len(ids) - 8} more" if len(ids) > 8 else shown
