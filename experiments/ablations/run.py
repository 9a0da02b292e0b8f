"""Trains DIMBA once for each line of axes.py, for the same number of steps, and scores it on validation rows.

    python experiments/ablations/run.py --base=generated --work=runs/ablations
    python experiments/ablations/run.py --base=qqp --data=DIR --work=runs/ablations --jobs=5

DIR holds DiffuSeq's QQP split. What the results hold already is not run again. With --jobs several runs share the
device, and their seconds are not comparable. Flags as --config.training.steps=100 are handed on to every training, for
trials: they and --rows ask for a file of their own, --results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from axes import BASES, RUNS, Run, differing
from recipe_files import CONFIGS
from seq2seq import parse_with_settings
from trainings import run_training, spent

HERE = Path(__file__).resolve().parent
FIGURES = ("bleu", "ibleu", "bleu_source", "rouge_l", "dist1", "length")
writing = threading.Lock()


class Failed(Exception):
    """A command did, or did not do all of it; the message has what it said."""


def train(options: argparse.Namespace, run: Run, workdir: Path) -> float:
    """Trains a run; the seconds of its processes from start to end, over all starts."""
    base = BASES[options.base]
    flags = [f"--config.{name}={value}" for name, value in run.over(base).items()]
    flags += [
        f"--seed={options.seed}",
        *options.settings,
        *([f"--config.data.path={options.data}"] if options.data else []),
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        config = str(CONFIGS / f"{base.recipe}.py")
        status = run_training(config, workdir, flags, env=environment(options), stdout=file, stderr=file)
    if status != 0:
        raise Failed(f"training ended with status {status}:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return sum(spent(workdir))


def score(options: argparse.Namespace, grid: str, workdir: Path) -> list[dict[str, Any]]:
    """A line for each sampling setting of a grid."""
    rows = options.rows or BASES[options.base].rows
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "sweep.jsonl"
        command = [sys.executable, str(HERE.parent / "sweep.py"), f"--checkpoint={workdir}", f"--grid={grid}"]
        command += [f"--limit={rows}", f"--output={output}"]
        done = subprocess.run(command, env=environment(options), capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"sampling ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    if found[0]["step"] < found[0]["of_steps"]:  # a training that was told to end leaves with status 0
        raise Failed(f"{workdir} is at step {found[0]['step']} of {found[0]['of_steps']}: run this again")
    names = [axis.partition("=")[0] for axis in grid.split(";") if axis]
    return [
        {"sampling": {name: line[name] for name in names}, "rows": line["rows"], "step": line["step"]}
        | {name: line[f"model.{name}"] for name in FIGURES}
        | {"copy_bleu": line["copy.bleu"], "sampling_seconds": line["seconds"]}
        for line in found
    ]


def environment(options: argparse.Namespace) -> dict[str, str]:
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / options.jobs:.2f}"} if options.jobs > 1 else {}
    return os.environ | share


def folder(options: argparse.Namespace, run: Run) -> Path:
    """Runs of the same settings share one, so that what is trained already is only sampled."""
    settings = differing(BASES[options.base], run)
    parts = [f"{name.partition('.')[2]}={value}" for name, value in sorted(settings.items())]
    parts += [flag.removeprefix("--config.") for flag in options.settings]
    return options.work / options.base / f"{re.sub('[^A-Za-z0-9_.=-]', '', '-'.join(parts)) or 'base'}-{options.seed}"


def one(options: argparse.Namespace, run: Run, workdir: Path) -> None:
    seconds = train(options, run, workdir)
    common = {"base": options.base, "axis": run.axis, "run": run.name, "seed": options.seed}
    common |= {"settings": differing(BASES[options.base], run), "more": options.settings}
    common |= {"seconds": round(seconds, 1), "jobs": options.jobs}
    lines = [common | line for grid in run.sampling for line in score(options, grid, workdir)]
    with writing, options.results.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{run.axis}: {run.name}, seed {options.seed}: BLEU {lines[0]['bleu']:.3f}, {seconds:.0f} s", flush=True)


def in_turn(options: argparse.Namespace, runs: list[Run], workdir: Path) -> list[str]:
    """The runs of one folder; the names of those that failed. The others go on."""
    failed = []
    for run in runs:
        try:
            one(options, run, workdir)
        except Exception as error:
            print(f"{run.axis}: {run.name}: {type(error).__name__}: {error}", flush=True)
            failed.append(run.name)
    return failed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--axis", action="append", choices=sorted({run.axis for run in RUNS}), help="all unless given")
    parser.add_argument("--seed", type=int, default=0, help="of training; one that is new adds runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--rows", type=int, help="of the validation split, in place of the base's")
    parser.add_argument("--results", type=Path, help="results.jsonl beside this script unless given")
    options = parse_with_settings(parser)
    if BASES[options.base].needs_data and not (options.data and options.data.is_dir()):
        parser.error(f"--base={options.base} needs --data, the folder of its pairs")
    for name in ("jobs", "rows"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}: expected a number from 1 on")
    if (options.settings or options.rows) and not options.results:
        parser.error("other settings or rows are no results of this study: name another file with --results")
    options.results = options.results or HERE / "results.jsonl"
    return options


def main() -> None:
    options = arguments()
    done = set()
    if options.results.exists():
        lines = map(json.loads, options.results.read_text(encoding="utf-8").splitlines())
        done = {(line["base"], line["axis"], line["run"], line["seed"]) for line in lines}
    todo: dict[Path, list[Run]] = {}
    for run in RUNS:
        wanted = options.axis is None or run.axis in options.axis
        if wanted and (options.base, run.axis, run.name, options.seed) not in done:
            todo.setdefault(folder(options, run), []).append(run)
    count = sum(map(len, todo.values()))
    print(f"{count} runs to do", flush=True)
    pool = ThreadPoolExecutor(options.jobs)
    try:
        jobs = [pool.submit(in_turn, options, runs, workdir) for workdir, runs in todo.items()]
        failed = [name for job in jobs for name in job.result()]
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise SystemExit(f"{len(failed)} of {count} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
