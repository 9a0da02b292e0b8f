"""The samples that run.py keeps in the workdirs of its trainings."""

from __future__ import annotations

from pathlib import Path

from run import workdir_of
from seq2seq import samples_file

from dimba_jax.data.examples import DataError
from dimba_jax.evals.records import Record, read_records


def again(system: str, seed: int, split: str, mbr: int) -> str:
    """How samples and their line come to be."""
    flags = f"--system={system!r} --seed={seed} --split={split} --score_only --mbr={mbr}"
    return f"score it with run.py {flags} and the flags of its sampling"


def samples(work: Path, system: str, seed: int, split: str, mbr: int) -> list[Record]:
    """What a network wrote: `mbr` samples a row or more, and whether it is unseen.

    Raises:
      SystemExit: the file is missing or wrong.
    """
    path = samples_file(workdir_of(system, work, seed), split, mbr)
    hint = again(system, seed, split, mbr)
    try:
        records = read_records(path)
    except DataError as error:
        raise SystemExit(f"{error}; {hint}") from None
    if len(records[0].samples) < mbr:
        raise SystemExit(f"{path} has {len(records[0].samples)} samples a row; {hint}")
    if any(record.unseen is None for record in records):
        raise SystemExit(f"{path} does not tell which rows are unseen; {hint}")
    return records
