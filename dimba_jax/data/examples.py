"""What a source yields: one example, its errors, and the reading of text shared by the file formats."""

from __future__ import annotations

from collections.abc import Iterator
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
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; expected a file") from None
    if not raw.strip():
        raise DataError(f"{path} is empty")
    raw = raw.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    for number, line in enumerate(raw.split(b"\n"), 1):  # not splitlines: U+2028 may stand inside a text
        try:
            yield number, line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason}, byte {error.start})") from None
