"""What a source yields: one example, its errors, and the reading of text shared by the file formats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dimba_jax.errors import UserError

Split = Literal["train", "valid", "test"]


_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


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


def parse_json(text: str, where: str) -> Any:
    """The value that a line of JSON stands for.

    Raises:
      DataError: no JSON, nested too deeply, or a text in it that no file could hold (see `check_text`).
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise DataError(f"{where}: not JSON of data ({error})") from None
    if _HALF_ESCAPED.search(text):
        check_text(json.dumps(value, ensure_ascii=False), where)
    return value


def check_text(text: str, where: str) -> None:
    """Refuses half a surrogate pair, which Python's texts may hold and UTF-8 cannot: no tokenizer could read it.

    Raises:
      DataError: there is one; where it stands is named.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: U+{ord(text[error.start]):04X} (character {error.start + 1}) is half of a surrogate pair and "
            "no character: give text in UTF-8"
        ) from None


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
      DataError: nothing is named, a name leads out of the folder, or no file matches a pattern.
    """
    if not names:
        raise DataError("config.data.train_files is empty: name at least one file")
    found = []
    for name in names:
        pattern, bracket, rest = name.partition("[")
        inside(folder, pattern)
        if not set(pattern) & set("*?"):
            found.append(name)
            continue
        try:
            matches = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())
        except ValueError as error:
            raise DataError(f"{folder}: {pattern!r} is no pattern of files ({error})") from None
        if not matches:
            raise DataError(f"{folder}: no file matches {pattern!r}")
        found.extend(match + bracket + rest for match in matches)
    return found


def inside(folder: Path, name: str) -> Path:
    """The place of a file that a config or another file names, which must lie in the folder or below it.

    Raises:
      DataError: the name is empty or absolute, or goes up.
    """
    path = Path(name)
    if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError(f"{folder}: {name!r} is no name of a file in this folder: give one, without '..'")
    return folder / path


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
