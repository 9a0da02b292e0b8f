"""Quora's release of its question pairs, one tab-separated file, cut into DiffuSeq's splits."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from dimba_jax.data.examples import DataError, Example, Split, read_lines

HEADER = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]

# DiffuSeq's split is the positive pairs in file order. The full release has 149,263, which leaves 144,715 to train.
TEST_ROWS = 2500
VALID_ROWS = 2048


def load_quora_tsv(path: Path, split: Split) -> list[Example]:
    """The positive pairs of one split: the first 2,500 test, the next 2,048 validate, the rest train.

    Raises:
      DataError: no such file, another header, a malformed row (its line is named), or too few positive pairs.
    """
    positives = list(_positive_pairs(path))
    if len(positives) <= TEST_ROWS + VALID_ROWS:
        raise DataError(
            f"{path}: {len(positives)} positive pairs, expected more than {TEST_ROWS + VALID_ROWS} "
            "(the whole release has 149,263); is the file complete?"
        )
    bounds = {
        "test": slice(0, TEST_ROWS),
        "valid": slice(TEST_ROWS, TEST_ROWS + VALID_ROWS),
        "train": slice(TEST_ROWS + VALID_ROWS, None),
    }
    chosen = positives[bounds[split]]
    return [Example(source, (target,), row) for row, (source, target) in enumerate(chosen)]


def _positive_pairs(path: Path) -> Iterator[tuple[str, str]]:
    # A quoted question may run over several lines, so the csv reader gets the lines with their ends.
    rows = csv.reader((line + "\n" for _, line in read_lines(path)), delimiter="\t")
    start = 1
    while True:
        where = f"{path}, line {start}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{where}: {error} (a quote that is never closed?)") from None
        if row is None:
            return
        if start == 1:
            if row != HEADER:
                raise DataError(f"{where}: expected the header {' '.join(HEADER)}, got {' '.join(row)[:80]!r}")
        elif len(row) != len(HEADER):
            raise DataError(f"{where}: expected {len(HEADER)} tab-separated fields, got {len(row)}")
        elif row[5] not in ("0", "1"):
            raise DataError(f"{where}: is_duplicate must be 0 or 1, got {row[5]!r}")
        elif row[5] == "1":
            question1, question2 = row[3].strip(), row[4].strip()
            if not question1 or not question2:
                raise DataError(f"{where}: a pair marked as duplicate has a blank question")
            yield question1, question2
        start = rows.line_num + 1
