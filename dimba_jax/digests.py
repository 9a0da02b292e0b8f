"""Digests of the files of a checkpoint, by which it is known whether they are what was written.

`digests.json` in the folder of a step holds the size and the CRC-32 of every file in it: fast enough for gigabytes (it
is bound by reading), and no truncation, flipped bit or burst of up to 32 bits goes unnoticed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILE = "digests.json"
METADATA = "_CHECKPOINT_METADATA"  # orbax's, of which types of items a step has
_CHANGING = "commit_timestamp_nsecs"  # which orbax adds to it last of all
_THREADS = 8
_CHUNK = 1 << 22


def write_digests(folder: Path) -> None:
    """Writes the digests of all files below the folder, before it gets its final name."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = dict(zip(names, _digests(folder, names), strict=True))
    draft = folder / f"{FILE}.draft"
    draft.write_text(json.dumps({"files": files, "own": _own(files)}, indent=0), encoding="utf-8")
    os.replace(draft, folder / FILE)


def damage(folder: Path, parts: Collection[str] | None = None) -> str | None:
    """What is wrong with the files of some parts of a step (its sub-folders; None: all), or None.

    Raises:
      FileNotFoundError: the step has no digests.
    """
    try:
        found = json.loads((folder / FILE).read_bytes())
        files = found["files"]
        if found["own"] != _own(files):
            return f"{FILE} is not as it was written"
        names = [name for name in files if parts is None or name == METADATA or name.partition("/")[0] in parts]
        there = _digests(folder, names)
    except FileNotFoundError:
        raise
    except OSError as error:  # a sector that cannot be read is damage, too
        return f"{error.filename or 'a file'} cannot be read ({error.strerror or error})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{FILE} cannot be read"
    for name, digest in zip(names, there, strict=True):
        size = files[name][0]
        if digest is None:
            return f"{name} is missing"
        if digest[0] != size and name != METADATA:
            return f"{name} has {digest[0]:,} bytes, where {size:,} were written"
        if digest != files[name]:
            return f"{name} is not as it was written"
    return None


def _digests(folder: Path, names: Collection[str]) -> list[list[int] | None]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: Path) -> list[int] | None:
    """Size and CRC-32; None where there is no such file."""
    try:
        if path.name == METADATA:
            return _metadata_digest(path)
        size, check = 0, 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                size, check = size + len(chunk), zlib.crc32(chunk, check)
        return [size, check]
    except FileNotFoundError:
        return None


def _metadata_digest(path: Path) -> list[int]:
    """Of its contents, without the time that is written when the digests are done already."""
    try:
        values = json.loads(path.read_bytes())
        values.pop(_CHANGING, None)
    except (ValueError, AttributeError):
        return [0, 0]
    text = json.dumps(values, sort_keys=True).encode()
    return [len(text), zlib.crc32(text)]


def _own(files: Mapping[str, list[int] | None]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
