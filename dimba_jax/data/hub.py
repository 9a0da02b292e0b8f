"""Datasets from the Hugging Face hub, or in a local folder of the same form (extra `hub`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.jsonl import pair_of

# The names splits go by on the hub, the usual one first.
_SPLIT_NAMES = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}


def load_hub(path: str, split: Split, columns: tuple[str, str]) -> list[Example]:
    """One split of a dataset id ("owner/name", or "owner/name:subset") or of a local folder.

    The folder is one that `DatasetDict.save_to_disk` wrote, or one that `datasets.load_dataset` reads.

    Raises:
      DataError: `datasets` is not installed, there is no such dataset or split, or a malformed row.
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
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        name, _, subset = (path, "", "") if folder.exists() else path.partition(":")
        return datasets.load_dataset(name, subset or None)
    except Exception as error:  # the package raises errors of many kinds; the user needs one clear line
        raise DataError(
            f"could not load dataset {path!r} ({type(error).__name__}: {error}). "
            "Give a dataset id, which needs the network, or a local folder."
        ) from error
