"""Trainings of a study: how they are run within a time, what they cost, and what they learned from."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WALL = "wall.json"  # in a workdir: seconds of each training process


def run_training(
    config: str, workdir: Path, flags: Sequence[str], minutes: float | None = None, **options: Any
) -> int | None:
    """Runs `dimba_jax.train` and keeps its time beside that of the starts before it.

    Args:
      minutes: after which it is told to save and end.
      options: of subprocess.Popen.

    Returns:
      Its exit status, or None if time was up.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dimba_jax.train", f"--config={config}", f"--workdir={workdir}", *flags]
    began = time.monotonic()
    process = subprocess.Popen(command, **options)
    try:
        return process.wait(None if minutes is None else 60 * minutes)
    except BaseException as error:  # whatever ends this program ends it, too, and it saves first
        process.send_signal(signal.SIGTERM)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise
    finally:
        (workdir / WALL).write_text(json.dumps([*spent(workdir), time.monotonic() - began]) + "\n")


def spent(workdir: Path) -> list[float]:
    """Seconds of each training process of a workdir."""
    wall = workdir / WALL
    return json.loads(wall.read_text()) if wall.exists() else []


def teachers(workdir: Path) -> list[Path]:
    """Workdirs of what a training learned from: where its run.json says, or beside it if they have moved together.

    Raises:
      SystemExit: one is in neither place, so that its minutes are not known.
    """
    run = workdir / "run.json"
    named = (
        json.loads(run.read_text(encoding="utf-8"))["config"]["training"].get("teachers", "") if run.exists() else ""
    )
    found = []
    for path in (Path(text.strip()) for text in named.split(",") if text.strip()):
        places = [place for place in (path, workdir.parent / path.name) if (place / WALL).exists()]
        if not places:
            raise SystemExit(f"{workdir} has learned from {path}, whose {WALL} is not there: put it beside {workdir}")
        found.append(places[0])
    return found


def trainings(workdirs: Sequence[Path]) -> list[Path]:
    """Those of some networks and of all that they learned from, each once."""
    found: dict[Path, Path] = {}
    waiting = list(workdirs)
    while waiting:
        path = waiting.pop()
        if path.resolve() not in found:
            found[path.resolve()] = path
            waiting += teachers(path)
    return list(found.values())


def commit_of(workdir: Path) -> dict[str, str]:
    """The commit of the program that trained, where run.json has it (it ran in a clone)."""
    run = workdir / "run.json"
    starts = json.loads(run.read_text(encoding="utf-8")).get("starts") if run.exists() else None
    commit = starts[0]["git_commit"] if starts else None
    return {"commit": commit[:7]} if commit else {}


def minutes_of(workdirs: Sequence[Path]) -> float:
    """Minutes of all trainings behind some networks; 0 of a single one that was not trained by `run_training`.

    Raises:
      SystemExit: those of one of several are not known.
    """
    found = trainings(workdirs)
    for path in found if len(found) > 1 else []:
        if not (path / WALL).exists():
            raise SystemExit(f"{path} has no {WALL}, which run.py leaves: train it with run.py")
    return round(sum(sum(spent(path)) for path in found) / 60, 2)
