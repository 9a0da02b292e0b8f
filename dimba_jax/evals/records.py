"""What was generated for each row of a split: the per-example file beside a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from dimba_jax.data.examples import DataError, parse_json, read_lines


class SourceAndTargets(Protocol):
    """The part of `dimba_jax.data.sources.Example` that scoring reads."""

    @property
    def source(self) -> str: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def row(self) -> int: ...


@dataclass(frozen=True)
class Record:
    """One row of a split and what a system wrote for it (nothing for the copy baseline alone)."""

    row: int
    source: str
    references: tuple[str, ...]
    samples: tuple[str, ...]
    unseen: bool | None = None  # neither side occurs in the training data; None: not looked up
    network_calls: int | None = None  # for one sample; None: not known, or not the same for all


def make_records(
    examples: Sequence[SourceAndTargets],
    candidates: Sequence[Sequence[str]] | None,
    train_texts: Iterable[str] | None,
    network_calls: int | None = None,
) -> list[Record]:
    """Joins examples with their samples. `train_texts`: both sides of the training and validation pairs.

    Raises:
      ValueError: the numbers of examples and of candidate sets differ.
    """
    if candidates is None:
        candidates = [()] * len(examples)
    if len(candidates) != len(examples):
        raise ValueError(f"{len(candidates)} sets of samples for {len(examples)} examples: give one for each")
    seen = None if train_texts is None else {text_key(text) for text in train_texts}
    records = []
    for example, samples in zip(examples, candidates, strict=True):
        unseen = None
        if seen is not None:
            unseen = not any(text_key(text) in seen for text in (example.source, *example.targets))
        records.append(
            Record(example.row, example.source, tuple(example.targets), tuple(samples), unseen, network_calls)
        )
    return records


def text_key(text: str) -> str:
    """Two texts are the same sentence if their keys agree: lower case, white space collapsed."""
    return " ".join(text.lower().split())


def read_records(path: str | Path) -> list[Record]:
    """Reads a per-example file; fields that scoring does not need are ignored.

    Raises:
      DataError: a line is no JSON object, lacks a field, holds a wrong type or another number of samples
        than the first; or the file is missing, empty or not UTF-8.
    """
    records = [_read_record(line, f"{path}:{number}") for number, line in read_lines(Path(path))]
    drawn = len(records[0].samples)
    for number, record in enumerate(records, 1):
        if len(record.samples) != drawn:
            raise DataError(f"{path}:{number}: has {len(record.samples)} samples where line 1 has {drawn}")
    return records


def pooled(records: Sequence[Sequence[Record]], names: Sequence[str], samples: int | None = None) -> list[Record]:
    """The same rows as several models or settings wrote them: one sample of each in turn, as long as there are any.

    A row is unseen if it is for each of them. Network calls of a sample are kept where they are the same for all.

    Args:
      records: those of each, one or more, row by row.
      names: what an error calls each of them.
      samples: keep so many of a row; None: all.

    Raises:
      DataError: one has other rows than the first, or no samples; or one tells which rows are unseen, another does not.
    """
    first = records[0]
    for name, others in zip(names[1:], records[1:], strict=True):
        if len(others) != len(first):
            have = f"{name} has {len(others)} rows, {names[0]} {len(first)}"
            raise DataError(f"{have}: pool evaluations of one split, with the same --limit")
        for number, (record, other) in enumerate(zip(first, others, strict=True), 1):
            if (record.row, record.source, record.references) != (other.row, other.source, other.references):
                raise DataError(f"{name}:{number}: another row than that of {names[0]}: pool evaluations of one split")
            if (record.unseen is None) != (other.unseen is None):
                which = (name, names[0]) if other.unseen is None else (names[0], name)
                raise DataError(
                    f"{which[0]} does not tell unseen rows, {which[1]} does: draw both with --unseen, or none"
                )
    if len(records) > 1:
        for name, others in zip(names, records, strict=True):
            if not others[0].samples:
                raise DataError(f"{name} holds no samples to pool: is it of a copy baseline?")
    return [_pooled(same, samples) for same in zip(*records, strict=True)]


def _pooled(same: Sequence[Record], samples: int | None) -> Record:
    turns = zip_longest(*(record.samples for record in same))
    unseen = {record.unseen for record in same}
    calls = {record.network_calls for record in same}
    return replace(
        same[0],
        samples=tuple(text for turn in turns for text in turn if text is not None)[:samples],
        unseen=None if None in unseen else all(unseen),
        network_calls=calls.pop() if len(calls) == 1 else None,
    )


def _read_record(line: str, where: str) -> Record:
    values = parse_json(line, where)
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(values).__name__}")
    for name, kind in {"row": int, "source": str, "references": list, "samples": list}.items():
        if name not in values:
            raise DataError(f"{where}: has no {name!r}")
        if not isinstance(values[name], kind):
            raise DataError(f"{where}: {name!r} is {values[name]!r}: expected {kind.__name__}")
    for name, kind in {"unseen": bool, "network_calls": int}.items():
        if values.get(name) is not None and not isinstance(values[name], kind):
            raise DataError(f"{where}: {name!r} is {values[name]!r}: expected {kind.__name__} or null")
    for name in ("references", "samples"):
        for text in values[name]:
            if not isinstance(text, str):
                raise DataError(f"{where}: {name!r} holds {text!r}: expected texts")
    if not values["references"]:
        raise DataError(f"{where}: 'references' is empty: expected at least one text")
    return Record(
        values["row"], values["source"], tuple(values["references"]), tuple(values["samples"]),
        values.get("unseen"), values.get("network_calls"),
    )  # fmt: skip


def record_line(record: Record, **more: object) -> str:
    """The JSON line of a record, with further fields behind it."""
    return json.dumps(asdict(record) | more, ensure_ascii=False)
