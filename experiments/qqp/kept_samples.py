"""The samples that run.py keeps in the workdirs of its trainings, and the lines of results.json that are of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from result_files import read
from run import workdir_of
from seq2seq import samples_file
from seq2seq_lines import Line, lines_of

from dimba_jax.data.examples import DataError
from dimba_jax.evals.records import Record, read_records
from dimba_jax.evals.report import ScoredRow, make_report


@dataclass(frozen=True)
class Kept:
    """What a training wrote for a split: `mbr` samples a row or more."""

    work: Path
    system: str
    seed: int
    split: str
    mbr: int

    def again(self) -> str:
        """How samples and their line come to be."""
        flags = f"--system={self.system!r} --seed={self.seed} --split={self.split} --score_only --mbr={self.mbr}"
        return f"score it with run.py {flags} and the flags of its sampling"

    def samples(self) -> list[Record]:
        """The rows, each of which tells whether it is unseen.

        Raises:
          SystemExit: the file is missing or wrong.
        """
        path = samples_file(workdir_of(self.system, self.work, self.seed), self.split, self.mbr)
        try:
            records = read_records(path)
        except DataError as error:
            raise SystemExit(f"{error}; {self.again()}") from None
        if len(records[0].samples) < self.mbr:
            raise SystemExit(f"{path} has {len(records[0].samples)} samples a row; {self.again()}")
        if any(record.unseen is None for record in records):
            raise SystemExit(f"{path} does not tell which rows are unseen; {self.again()}")
        return records

    def line(self, results: Path) -> Line | None:
        """The line of run.py's choice by BLEU among the samples; None: there is none."""
        wanted = {
            "system": self.system, "seed": self.seed, "split": self.split, "subset": "all", "mbr": self.mbr,
            "curve": False,
        }  # fmt: skip
        found = (line for line in read(results) if wanted.items() <= line.items() and "gain" not in line)
        return next(found, None)

    def check(self, line: Line, rows: list[ScoredRow], results: Path) -> None:
        """Whether the line is of these samples, whose scores by BLEU `rows` are.

        Raises:
          SystemExit: it is of others.
        """
        (now, *_) = lines_of(make_report(rows, self.split), [self.mbr], line, None)
        for name in ("rows", "bleu"):
            if now[name] != line[name]:
                raise SystemExit(
                    f"{self.system}, seed {self.seed}: {name} of the kept samples is {now[name]}, of the line in "
                    f"{results} {line[name]}; {self.again()}"
                )
