"""Trains DIMBA once for each line of axes.py, for the same number of steps, and scores it on validation rows.

    python experiments/ablations/run.py --base=generated --work=runs/ablations
    python experiments/ablations/run.py --base=qqp --data=DIR --work=runs/ablations --jobs=3

DIR holds DiffuSeq's QQP split. What results.jsonl holds already is not run again. With --jobs several runs share the
device, and their seconds are not comparable. Flags as --config.training.steps=100 are handed on to every training.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from axes import BASES, RUNS, Run

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
FIGURES = ("bleu", "ibleu", "bleu_source", "rouge_l", "dist1", "length")


def train(options: argparse.Namespace, run: Run, seed: int, workdir: Path) -> float:
    """Trains a run; the seconds of the process from start to end."""
    base = BASES[options.base]
    settings = {f"--config.{name}={value}" for name, value in run.over(base).items()}
    command = [sys.executable, "-m", "dimba_jax.train", f"--config={HERE.parents[1] / 'configs' / base.recipe}.py"]
    command += [f"--workdir={workdir}", f"--seed={seed}", *sorted(settings), *options.settings]
    if options.data:
        command.append(f"--config.data.path={options.data}")
    began = time.monotonic()
    call(options, command)
    return time.monotonic() - began


def score(options: argparse.Namespace, grid: str, workdir: Path) -> list[dict[str, Any]]:
    """A line for each sampling setting of a grid."""
    rows = options.rows or BASES[options.base].rows
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "sweep.jsonl"
        command = [sys.executable, str(HERE.parent / "sweep.py"), f"--checkpoint={workdir}", f"--grid={grid}"]
        call(options, [*command, f"--limit={rows}", f"--output={output}"])
        found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    names = [axis.partition("=")[0] for axis in grid.split(";") if axis]
    return [
        {"sampling": {name: line[name] for name in names}, "rows": line["rows"], "step": line["step"]}
        | {name: line[f"model.{name}"] for name in FIGURES}
        | {"copy_bleu": line["copy.bleu"], "sampling_seconds": line["seconds"]}
        for line in found
    ]


class Failed(Exception):
    """A command did; the message has what it said."""


def call(options: argparse.Namespace, command: list[str]) -> None:
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / options.jobs:.2f}"} if options.jobs > 1 else {}
    done = subprocess.run(command, env=os.environ | share, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}\nended with status {done.returncode}:\n{done.stderr[-3000:]}")


def folder(options: argparse.Namespace, run: Run, seed: int) -> Path:
    """Runs of the same settings share one, so that what is trained already is only sampled."""
    differ = run.settings | ({"model.more_layers": run.more_layers} if run.more_layers else {})
    text = "-".join(f"{name.partition('.')[2]}={value}" for name, value in sorted(differ.items())) or "base"
    return options.work / options.base / f"{re.sub('[^a-z0-9_.=-]', '', text)}-{seed}"


def one(options: argparse.Namespace, run: Run, seed: int) -> list[dict[str, Any]]:
    workdir = folder(options, run, seed)
    seconds = train(options, run, seed, workdir)
    common = {"base": options.base, "axis": run.axis, "run": run.name, "seed": seed}
    common |= {"settings": run.over(BASES[options.base]), "more": options.settings}
    common |= {"seconds": round(seconds, 1), "jobs": options.jobs}
    lines = [common | line for grid in run.sampling for line in score(options, grid, workdir)]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    print(f"{run.axis}: {run.name}, seed {seed}: BLEU {lines[0]['bleu']:.3f}, {seconds:.0f} s", flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--axis", action="append", choices=sorted({run.axis for run in RUNS}), help="all unless given")
    parser.add_argument("--seed", type=int, default=0, help="of training; one that is new adds runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--rows", type=int, help="of the validation split, in place of the base's")
    options, options.settings = parser.parse_known_args()
    if wrong := [flag for flag in options.settings if not flag.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(wrong)}; flags that begin with --config. are those of train")
    known = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []
    done = {(line["base"], line["axis"], line["run"], line["seed"]) for line in known}
    todo = [
        run for run in RUNS
        if (options.axis is None or run.axis in options.axis)
        and (options.base, run.axis, run.name, options.seed) not in done
    ]  # fmt: skip
    print(f"{len(todo)} runs to do", flush=True)
    options.work.mkdir(parents=True, exist_ok=True)
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for run, future in [(run, pool.submit(one, options, run, options.seed)) for run in todo]:
            try:
                future.result()
            except Failed as error:  # the others go on
                print(f"{run.axis}: {run.name}: {error}", flush=True)
                failed.append(run.name)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
