"""What a source yields: one example, its errors, and the reading of text shared by the file formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dimba_jax.errors import UserError

Split = Literal["train", "valid", "test"]


class DataError(UserError, ValueError):
    """Data that cannot be used; the message says where it is and what to do."""


@dataclass(frozen=True, slots=True)
class Example:
    """One source text with its reference targets, as they stand in the data (not normalised)."""

    source: str
    targets: tuple[str, ...]  # at least one
    row: int  # its place in the split, from 0


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file; a byte order mark is passed over.

    Raises:
      DataError: the file is missing, empty, or not UTF-8 (the line is named).
    """
    lines = _read(path).removesuffix(b"\n").split(b"\n")  # not splitlines: U+2028 may stand inside a text
    for number, line in enumerate(lines, 1):
        yield number, _decode(line, path, number).removesuffix("\r")


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file as it stands, line ends too; a byte order mark is passed over.

    Raises:
      DataError: the file is missing, empty, or not UTF-8 (the line is named).
    """
    raw = _read(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        start = raw.rfind(b"\n", 0, error.start) + 1
        return _decode(raw[start:], path, raw.count(b"\n", 0, start) + 1)  # raises, the line named


def named_files(folder: Path, names: Sequence[str]) -> list[str]:
    """The names with each pattern, as "train*.txt", replaced by the files it matches; a plain name stays.

    What follows a "[" is no part of the pattern, and stays behind every file's name.

    Raises:
      DataError: nothing is named, or no file matches a pattern.
    """
    if not names:
        raise DataError("config.data.train_files is empty: name at least one file")
    found = []
    for name in names:
        pattern, bracket, rest = name.partition("[")
        if not set(pattern) & set("*?"):
            found.append(name)
            continue
        matches = sorted(path.name for path in folder.glob(pattern))
        if not matches:
            raise DataError(f"{folder}: no file matches {pattern!r}")
        found.extend(match + bracket + rest for match in matches)
    return found


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; expected a file") from None
    if not raw.strip():
        raise DataError(f"{path} is empty")
    return raw.removeprefix(b"\xef\xbb\xbf")


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason}, byte {error.start})") from None
