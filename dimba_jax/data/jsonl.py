"""Folders of JSON lines, as DiffuSeq publishes them: {"src": text, "trg": text or list of texts}."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimba_jax.data.examples import DataError, Example, inside, named_files, parse_json, read_lines

_RANGE = re.compile(r"^(?P<name>.+?)\[(?P<start>-?\d*):(?P<stop>-?\d*)\]$")


def load_jsonl(folder: Path, files: Sequence[str], columns: tuple[str, str]) -> list[Example]:
    """The rows of `files`, one after the other.

    A name may be a pattern, as in "train*.jsonl" (its files in alphabetical order), and may end in a row
    range, as in "asset_valid.jsonl[:1800]" and "asset_valid.jsonl[1800:]" (Python's slices), so that one
    file can serve several splits.

    Raises:
      DataError: no such folder or file; a malformed row (file and line are named); an empty range.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (config.data.path must hold {', '.join(files)})")
    pairs = [pair for spec in named_files(folder, files) for pair in _read_file(folder, spec, columns)]
    return [Example(source, targets, row) for row, (source, targets) in enumerate(pairs)]


def pair_of(record: Any, columns: tuple[str, str], where: str) -> tuple[str, tuple[str, ...]]:
    """Source and references of one record; several references come as `refs`, or as a list of targets.

    Raises:
      DataError: not a mapping, a missing key, a text that is no text or is blank.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with the keys {columns}, got {_short(record)}")
    source_key, target_key = columns
    refs_key = "refs" if "refs" in record else target_key
    for key in (source_key, refs_key):
        if key not in record:
            raise DataError(
                f"{where}: no key {key!r} among {sorted(record)}; config.data.columns names source and target"
            )
    source, targets = record[source_key], record[refs_key]
    targets = (targets,) if isinstance(targets, str) else targets
    if not isinstance(targets, (list, tuple)) or not targets:
        raise DataError(f"{where}: {refs_key!r} must be a text or a list of texts, got {_short(targets)}")
    for key, text in ((source_key, source), *((refs_key, text) for text in targets)):
        if not isinstance(text, str):
            raise DataError(f"{where}: {key!r} must be a text, got {_short(text)}")
        if not text.strip():
            raise DataError(f"{where}: {key!r} is blank")
    return source, tuple(targets)


def _read_file(folder: Path, spec: str, columns: tuple[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    match = _RANGE.match(spec)
    path = inside(folder, match["name"] if match else spec)
    pairs = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        pairs.append(pair_of(parse_json(line, where), columns, where))
    if match is None:
        return pairs
    bounds = [int(text) if text else None for text in (match["start"], match["stop"])]
    for bound in bounds:
        if bound is not None and abs(bound) > len(pairs):
            raise DataError(f"{spec!r} asks for row {bound}, but {path} has {len(pairs)} rows")
    chosen = pairs[slice(*bounds)]
    if not chosen:
        raise DataError(f"{spec!r} selects none of the {len(pairs)} rows of {path}")
    return chosen


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
