"""How much more the texts of one system score than those of another, row by row.

    python experiments/qqp/differences.py --work=runs --system="DiffuMamba-H distilled" --seeds=0,1 \\
        --than=DiffuMamba-H --than_seeds=3,4 --mbr=10

The samples are those that run.py kept. In each row the mean of the first system's seeds less the mean of the second's;
a line of differences.jsonl, for all rows and for those unseen in training, has the mean over rows and its standard
error, which says how far other rows would move it and not how far other trainings would. The same comparison made again
takes the place of the line before.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kept_samples import samples
from run import SYSTEMS
from seq2seq import numbers

from dimba_jax.data.examples import DataError
from dimba_jax.evals.records import pooled
from dimba_jax.evals.report import ScoredRow, score_rows, system_name
from dimba_jax.sampling.mbr import GAINS

FIGURES = ("bleu", "ibleu", "bleu_source")
Line = dict[str, Any]


def main() -> None:
    options = parse()
    first = [scored(options, options.system, seed) for seed in options.seeds]
    second = [scored(options, options.than, seed) for seed in options.than_seeds]
    check_rows(options, first + second)
    names: Line = {"system": options.system, "seeds": options.seeds, "than": options.than}
    names |= {"than_seeds": options.than_seeds, "split": options.split, "mbr": options.mbr, "gain": options.gain}
    lines = []
    for subset in ("all", "unseen"):
        chosen = [n for n, row in enumerate(first[0]) if subset == "all" or row.record.unseen]
        if len(chosen) > 1:
            line = names | {"subset": subset, "rows": len(chosen)}
            for name in FIGURES:
                both = [[values(one, name, chosen, options) for one in side] for side in (first, second)]
                line |= more(name, *both)
            lines.append(line)
            print(json.dumps(line))
    keep(options.output, lines)


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--work", type=Path, default=Path("runs"))
    flags.add_argument("--system", choices=SYSTEMS, required=True)
    flags.add_argument("--seeds", type=numbers, required=True, help="of the trainings, as in 0,1")
    flags.add_argument("--than", choices=SYSTEMS, required=True, help="the system beside it")
    flags.add_argument("--than_seeds", type=numbers, required=True)
    flags.add_argument("--gain", choices=GAINS, default="bleu", help="what the choice among several samples is by")
    flags.add_argument("--split", default="test", choices=["valid", "test"])
    flags.add_argument("--mbr", type=int, default=10, help="samples to choose among; 1: one sample")
    flags.add_argument("--output", type=Path, default=Path(__file__).parent / "differences.jsonl")
    options = flags.parse_args()
    for name in ("seeds", "than_seeds"):
        if len(set(getattr(options, name))) != len(getattr(options, name)):
            flags.error(f"--{name}: one is named twice; name each once")
        getattr(options, name).sort()
    if options.system == options.than and set(options.seeds) & set(options.than_seeds):
        flags.error("--than_seeds: a training would be compared with itself; name others")
    if options.mbr < 1 or (options.mbr == 1 and options.gain != "bleu"):
        flags.error(f"--mbr={options.mbr}: expected two samples at least to choose among by {options.gain}, or one")
    return options


def scored(options: argparse.Namespace, system: str, seed: int) -> list[ScoredRow]:
    """The rows of a training with the figures of its choice."""
    records = samples(options.work, system, seed, options.split, options.mbr)
    return score_rows(records, [options.mbr], gain=options.gain)


def check_rows(options: argparse.Namespace, found: list[list[ScoredRow]]) -> None:
    """Raises SystemExit where the trainings were scored on different rows."""
    names = [f"{options.system}, seed {seed}" for seed in options.seeds]
    names += [f"{options.than}, seed {seed}" for seed in options.than_seeds]
    try:
        pooled([[row.record for row in rows] for rows in found], names)
    except DataError as error:
        raise SystemExit(str(error)) from None


def values(rows: list[ScoredRow], figure: str, chosen: list[int], options: argparse.Namespace) -> list[float]:
    system = system_name(options.mbr, options.gain)
    return [rows[n].systems[system][figure] for n in chosen]


def more(figure: str, first: list[list[float]], second: list[list[float]]) -> Line:
    """The mean over rows of the first ones' mean less the second ones', and its standard error."""
    rows = [
        statistics.fmean(one) - statistics.fmean(other)
        for one, other in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    ]
    error = statistics.stdev(rows) / math.sqrt(len(rows))
    return {f"{figure}_more": round(statistics.fmean(rows), 6), f"{figure}_error": round(error, 6)}


def keep(path: Path, lines: list[Line]) -> None:
    """Adds lines, each in the place of the same comparison's before."""
    known = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    found = {identity(line): line for line in known} | {identity(line): line for line in lines}
    path.write_text("".join(json.dumps(line) + "\n" for line in found.values()), encoding="utf-8")


def identity(line: Line) -> str:
    names = ("system", "seeds", "than", "than_seeds", "split", "mbr", "gain", "subset")
    return json.dumps([line[name] for name in names])


if __name__ == "__main__":
    main()
