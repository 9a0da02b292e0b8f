"""Compares choices among samples that were kept: by BLEU and by iBLEU, of each of several files and of pools of them.

    python experiments/qqp/choices.py --samples wide=wide.examples.jsonl dropout=dropout.examples.jsonl \\
        --output=choices.jsonl

The files are those that `evaluate --output` or run.py leave, of the same rows. Each file alone and each pool of two or
more is a line for each gain: its figures, and how much BLEU and iBLEU it has beside what the files' own choices by BLEU
have in the mean, with the standard error of that difference, a mean over rows. A pool has one sample of each file in
turn, --mbr in all.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dimba_jax import commandline
from dimba_jax.data.examples import DataError
from dimba_jax.errors import UserError
from dimba_jax.evals.records import Record, pooled, read_records
from dimba_jax.evals.report import ScoredRow, make_report, score_rows, system_name
from dimba_jax.sampling.mbr import GAINS, Gain

KEPT = ("bleu", "ibleu", "bleu_source", "dist1", "self_bleu", "length")
Line = dict[str, Any]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--samples", nargs="+", required=True, metavar="NAME=FILE")
    flags.add_argument("--mbr", type=int, default=10, help="samples to choose among")
    flags.add_argument("--output", type=Path, required=True, help="lines are added to it")
    options = flags.parse_args()
    named = dict(text.partition("=")[::2] for text in options.samples)
    if len(named) < len(options.samples) or not all(named.values()):
        flags.error("--samples: expected NAME=FILE, each name once")
    if options.mbr < max(2, len(named)):
        flags.error(f"--mbr={options.mbr}: expected a sample of each file, two at least")
    try:
        commandline.output_file(str(options.output), reads=list(named.values()))
        drawn = {name: read_records(path) for name, path in named.items()}
        for name, records in drawn.items():
            if len(records[0].samples) < options.mbr:
                raise DataError(f"{named[name]} has {len(records[0].samples)} samples a row: expected {options.mbr}")
        lines = compared(drawn, options.mbr)
    except UserError as error:
        raise SystemExit(str(error)) from None
    with options.output.open("a", encoding="utf-8") as file:
        for line in lines:
            print(json.dumps(line))
            file.write(json.dumps(line) + "\n")


def compared(drawn: dict[str, list[Record]], size: int) -> list[Line]:
    """The lines of all files and pools.

    Raises:
      DataError: files of other rows.
    """
    own = {name: score_rows(records, [size]) for name, records in drawn.items()}
    lines = []
    for count in range(1, len(drawn) + 1):
        for names in combinations(drawn, count):
            records = pooled([drawn[name] for name in names], names, size)
            for gain in GAINS:
                rows = own[names[0]] if (count, gain) == (1, "bleu") else score_rows(records, [size], gain=gain)
                lines.append(line_of(names, rows, [own[name] for name in names], gain, size))
    return lines


def line_of(names: Sequence[str], rows: list[ScoredRow], own: list[list[ScoredRow]], gain: Gain, size: int) -> Line:
    system = system_name(size, gain)
    figures = make_report(rows, "")["systems"][system]
    line: Line = {"samples_of": list(names), "mbr": size, "gain": gain, "rows": len(rows)}
    line |= {name: figures[name] for name in KEPT}
    for name in ("bleu", "ibleu"):
        before = [[row.systems[system_name(size)][name] for row in one] for one in own]
        more = [
            row.systems[system][name] - statistics.fmean(values) for row, *values in zip(rows, *before, strict=True)
        ]
        line[f"{name}_more"] = round(statistics.fmean(more), 6)
        line[f"{name}_error"] = round(statistics.stdev(more) / math.sqrt(len(more)), 6) if len(more) > 1 else None
    return line


if __name__ == "__main__":
    main()
