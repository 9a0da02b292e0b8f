"""Datasets from the Hugging Face hub, or in a local folder of the same form (extra `hub`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dimba_jax.data.examples import DataError, Example, Split, inside, parse_json, read_text
from dimba_jax.data.jsonl import pair_of

# The names splits go by on the hub, the usual one first.
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_SPLIT_NAMES = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}


def load_hub(path: str, split: Split, columns: tuple[str, str]) -> list[Example]:
    """One split of a dataset id ("owner/name", or "owner/name:subset") or of a local folder.

    The folder is one that `DatasetDict.save_to_disk` wrote, or one that `datasets.load_dataset` reads. A dataset's own
    code is never run, and what it names must lie in it.

    Raises:
      DataError: `datasets` is not installed, there is no such dataset or split, it names files elsewhere, or a
        malformed row.
    """
    if not path:
        raise DataError("config.data.path is empty: name a dataset id or a local folder for source='hub'")
    splits = _open(path)
    names = [name for name in _SPLIT_NAMES[split] if name in splits]
    if not names:
        raise DataError(
            f"dataset {path!r} has no split {split!r} (looked for {', '.join(_SPLIT_NAMES[split])}); "
            f"it has {', '.join(splits) or 'none'}"
        )
    rows = splits[names[0]]
    if not len(rows):
        raise DataError(f"dataset {path!r}, split {names[0]!r} is empty")
    pairs = (pair_of(record, columns, f"dataset {path!r}, {names[0]} row {row}") for row, record in enumerate(rows))
    return [Example(source, targets, row) for row, (source, targets) in enumerate(pairs)]


def _open(path: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("source='hub' needs the package datasets: pip install -e '.[hub]'") from None
    folder = Path(path)
    name, _, subset = (path, "", "") if folder.exists() else path.partition(":")
    if not (folder.exists() or (_ID.fullmatch(name) and "/" not in subset)):
        raise DataError(
            f"{path!r} is neither a folder that is there nor a dataset id, as owner/name or owner/name:subset"
        )
    try:
        if (folder / "dataset_dict.json").is_file():
            _check_saved(folder)
            return datasets.load_from_disk(path)
        named = datasets.load_dataset_builder(name, subset or None).config.data_files or {}
        check_files(
            [file for split in named.values() for file in split], path if folder.exists() else f"hf://datasets/{name}@"
        )
        return datasets.load_dataset(name, subset or None)
    except DataError:
        raise
    except Exception as error:  # the package raises errors of many kinds; the user needs one clear line
        raise DataError(
            f"could not load dataset {path!r} ({type(error).__name__}: {' '.join(str(error).split())}). "
            "Give a dataset id, which needs the network, or a local folder."
        ) from error


def check_files(files: Iterable[str], root: str) -> None:
    """Refuses files that do not belong to a dataset: its card may name any file of this machine, and any address.

    Args:
      root: the dataset's folder, or what the addresses of its files on the hub begin with.

    Raises:
      DataError: the first file that lies elsewhere.
    """
    for file in files:
        if root.startswith("hf://"):
            belongs = file.startswith(root) and ".." not in file.split("/")
        else:
            belongs = Path(os.path.abspath(file)).is_relative_to(os.path.abspath(root))
        if not belongs:
            raise DataError(f"the dataset {root!r} names the file {file!r}, which is not in it: take another dataset")


def _check_saved(folder: Path) -> None:
    """The same for what `save_to_disk` wrote: a list of splits, and for each a list of files."""
    index = folder / "dataset_dict.json"
    try:
        for split in parse_json(read_text(index), str(index))["splits"]:
            state = inside(folder, split) / "state.json"
            for file in parse_json(read_text(state), str(state))["_data_files"]:
                inside(state.parent, file["filename"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} is no folder that save_to_disk wrote ({type(error).__name__}: {error})") from None
