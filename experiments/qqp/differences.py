"""How much more the texts of one system score than those of another, row by row.

    python experiments/qqp/differences.py --work=runs --system="DiffuMamba-H distilled" --seeds=0,1 \\
        --than=DiffuMamba-H --than_seeds=3,4 --mbr=10

The samples are those that run.py kept in WORK/SYSTEM-SEED; where results.json has a line of their training with another
BLEU they are refused. In each row the mean of the first system's seeds less the mean of the second's; a line of
differences.jsonl has the mean over rows and its standard error, which says how far other rows would move it and not how
far other trainings would. There is one for all rows and, of the test split, one for those unseen in training. The same
comparison made again takes the place of the line before.
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

from kept_samples import Kept
from run import SYSTEMS
from seq2seq import numbers

from dimba_jax import commandline
from dimba_jax.data.examples import DataError
from dimba_jax.errors import UserError
from dimba_jax.evals.records import Record, pooled
from dimba_jax.evals.report import score_rows, system_name
from dimba_jax.sampling.mbr import GAINS

FIGURES = ("bleu", "ibleu", "bleu_source")
COMPARISON = ("system", "seeds", "than", "than_seeds", "split", "mbr", "gain")
Line = dict[str, Any]
Rows = list[dict[str, float]]  # of each row the figures of its choice


def main() -> None:
    options = parse()
    known = before(options.output)
    sides = ((options.system, options.seeds), (options.than, options.than_seeds))
    files = [Kept(options.work, system, seed, options.split, options.mbr) for system, seeds in sides for seed in seeds]
    drawn = [file.samples() for file in files]
    try:
        together = pooled(drawn, [f"{file.system}, seed {file.seed}" for file in files])
    except DataError as error:
        raise SystemExit(str(error)) from None
    if len(together) < 2:
        raise SystemExit("one row has no standard error: score more of them")
    found = [figures(options, file, records) for file, records in zip(files, drawn, strict=True)]
    first, second = found[: len(options.seeds)], found[len(options.seeds) :]
    lines: list[Line] = []
    for subset in ("all", "unseen"):
        chosen = [number for number, row in enumerate(together) if subset == "all" or row.unseen]
        if len(chosen) > 1:
            line: Line = {name: getattr(options, name) for name in COMPARISON}
            line |= {"subset": subset, "rows": len(chosen)} | more(first, second, chosen)
            lines.append(line)
            print(json.dumps(line))
    known[comparison(lines[0])] = lines
    texts = [json.dumps(line) + "\n" for same in known.values() for line in same]
    options.output.write_text("".join(texts), encoding="utf-8")


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
    flags.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
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


def before(path: Path) -> dict[str, list[Line]]:
    """The lines of each of the earlier comparisons.

    Raises:
      SystemExit: the file holds others, or cannot be written.
    """
    try:
        commandline.output_file(str(path))
    except UserError as error:
        raise SystemExit(str(error)) from None
    known: dict[str, list[Line]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            known.setdefault(comparison(line), []).append(line)
        except (ValueError, KeyError, TypeError):
            raise SystemExit(f"{path}:{number}: no comparison of two systems; --output names a file of those") from None
    return known


def figures(options: argparse.Namespace, file: Kept, records: list[Record]) -> Rows:
    """The figures of a training's choice in each row.

    Raises:
      SystemExit: results.json has a line of other samples.
    """
    rows = score_rows(records, [options.mbr])
    line = file.line(options.results) if options.results.exists() else None
    if line is not None:
        file.check(line, rows, options.results)
    if options.gain != "bleu":
        rows = score_rows(records, [options.mbr], gain=options.gain)
    system = system_name(options.mbr, options.gain)
    return [{name: row.systems[system][name] for name in FIGURES} for row in rows]


def more(first: list[Rows], second: list[Rows], chosen: list[int]) -> Line:
    """Of each figure the mean over rows of the first ones' mean less the second ones', and its standard error."""
    line: Line = {}
    for name in FIGURES:
        rows = []
        for number in chosen:
            one, other = (statistics.fmean(rows[number][name] for rows in side) for side in (first, second))
            rows.append(one - other)
        line[f"{name}_more"] = round(statistics.fmean(rows), 6)
        line[f"{name}_error"] = round(statistics.stdev(rows) / math.sqrt(len(rows)), 6)
    return line


def comparison(line: Line) -> str:
    """What tells a comparison from others."""
    return json.dumps([line[name] for name in COMPARISON])


if __name__ == "__main__":
    main()
