"""Running text: plain files of the user's, or the source of Python's standard library on this machine."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from dimba_jax.config import DataConfig, TextConfig
from dimba_jax.data.examples import DataError, Split, inside, named_files, read_text

LIBRARY_BYTES = 4_000_000  # of the standard library, at most
LIBRARY_FILE_BYTES = 200_000  # of one of its files: beyond it, tables and generated text
# Tests, packages that are not the library's, tables of characters, and what differs from one build to the next
_LEFT_OUT = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "encodings", "__pycache__"}
_FRACTION = {"train": "valid_fraction and test_fraction", "valid": "valid_fraction", "test": "test_fraction"}
_MACHINE = ("_sysconfigdata", "config-")


def load_texts(config: DataConfig, split: Split) -> list[str]:
    """The documents of one split of `data.source="text"`, as they stand in the files, not normalised.

    `config.path` is a folder, whose files `train_files`, `valid_file` and `test_file` name (or patterns, as in
    "part*.txt"), one document each; or a single file, the end of which is held out; or "" for the standard
    library's source (see `library_files`), of which whole files are held out. Nothing is downloaded.

    Raises:
      DataError: a file that is missing, empty or not UTF-8 (its line is named), or a split that holds no text.
    """
    if split not in ("train", "valid", "test"):
        raise DataError(f"split={split!r}: choose one of 'train', 'valid', 'test'")
    if not config.path:
        texts = [read_text(path).replace("\r\n", "\n") for path in library_files(config.text, split)]
    elif (folder := Path(config.path)).is_dir():
        names = {"train": config.train_files, "valid": (config.valid_file,), "test": (config.test_file,)}[split]
        texts = [read_text(inside(folder, name)) for name in named_files(folder, names)]
    else:
        texts = [part] if (part := _share(read_text(Path(config.path)), config.text, split)) else []
    if not texts:
        raise DataError(
            f"{config.path or 'the library source'}: no text for {split!r}; "
            f"config.data.text.{_FRACTION[split]} of a single text is held out: raise it above 0, or give a folder "
            f"with config.data.{split}_file"
        )
    return texts


def library_files(config: TextConfig, split: Split) -> list[Path]:
    """The standard library's .py files of one split, about 4 MB over all splits, in alphabetical order.

    Which files are taken, and which are held out, follows from their names alone: the same module falls into
    the same split on every machine.

    Raises:
      DataError: this Python comes without its source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    taken, size = [], 0
    for path in sorted(_library(root), key=_draw):  # a random order, so that the cap prefers no letter
        bytes_here = (root / path).stat().st_size
        if 0 < bytes_here <= LIBRARY_FILE_BYTES and size + bytes_here <= LIBRARY_BYTES:
            taken.append(path)
            size += bytes_here
    if not taken:
        raise DataError(f"{root}: no .py files; name a text file or a folder with --config.data.path")
    return [root / path for path in sorted(taken) if _split_of(path, config) == split]


def _library(root: Path) -> Iterator[Path]:
    """The source files below the root that are the library's own, relative to it."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(_MACHINE)]
        for name in files:
            if name.endswith(".py") and not name.startswith(_MACHINE):
                yield (Path(folder) / name).relative_to(root)


def _share(text: str, config: TextConfig, split: Split) -> str:
    """Of a single text: first what is trained on, then validation, then test."""
    valid_from = int(len(text) * (1 - config.valid_fraction - config.test_fraction))
    test_from = int(len(text) * (1 - config.test_fraction))
    return {"train": text[:valid_from], "valid": text[valid_from:test_from], "test": text[test_from:]}[split]


def _split_of(path: Path, config: TextConfig) -> Split:
    draw = _draw(path, "split")
    if draw < config.test_fraction:
        return "test"
    return "valid" if draw < config.test_fraction + config.valid_fraction else "train"


def _draw(path: Path, salt: str = "") -> float:
    """A number in [0, 1) that the file's name determines."""
    digest = hashlib.sha256(f"{salt} {path.as_posix()}".encode()).digest()
    return int.from_bytes(digest[:7]) / (1 << 56)
