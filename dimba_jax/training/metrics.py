"""Where figures go: `metrics.jsonl` (a JSON object a line, each with its step) and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dimba_jax.data.examples import DataError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Metrics:
    """Writes figures and sample texts of a run; a context manager.

    A run that starts again at step s drops what was written after s, so each step is in the trace once.
    On processes other than the first it writes nothing.
    """

    def __init__(self, workdir: Path, *, after_step: int = 0, enabled: bool = True):
        self.path = workdir / METRICS_FILE
        self._lines = self._samples = self._board = None
        if not enabled:
            return
        from tensorboardX import SummaryWriter

        drop_after(self.path, after_step)
        self._lines = self.path.open("a", encoding="utf-8")
        samples = workdir / SAMPLES_FILE
        drop_after(samples, after_step)
        self._samples = samples.open("a", encoding="utf-8")
        purge = after_step + 1 if after_step else None
        self._board = SummaryWriter(
            str(workdir / TENSORBOARD_FOLDER), purge_step=purge, filename_suffix=f".from{after_step}"
        )

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._lines, self._samples, self._board):
            if file is not None:
                file.close()

    def scalars(self, step: int, figures: Mapping[str, float]) -> None:
        """One line and one point a figure; a value that is not finite becomes null in the file."""
        if self._lines is None or self._board is None:
            return
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in figures.items():
            if not math.isfinite(value):
                continue  # TensorBoard draws no such point
            self._board.add_scalar(name, value, step)

    def texts(self, step: int, pairs: Sequence[tuple[str, str]]) -> None:
        """Sample texts beside their prompts: a line each, and a table in TensorBoard."""
        if self._samples is None or self._board is None:
            return
        for prompt, text in pairs:
            line = {"step": step, "prompt": prompt, "sample": text}
            self._samples.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._samples.flush()
        rows = [f"| {_cell(prompt)} | {_cell(text)} |" for prompt, text in pairs]
        self._board.add_text("samples", "\n".join(["| prompt | sample |", "|---|---|", *rows]), step)
        self._board.flush()


def drop_after(path: Path, step: int) -> None:
    """Removes the lines of later steps; a last line that an interruption cut short goes too.

    Raises:
      DataError: a line other than the last that is no JSON object with a step.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise DataError(f"{path}, line {number}: expected a JSON object with a step; move it away") from None
    draft = path.with_suffix(".draft")
    draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(draft, path)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
