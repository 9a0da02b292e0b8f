"""Where examples come from: one call for every kind of source."""

from __future__ import annotations

from pathlib import Path

from dimba_jax.config import DataConfig
from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.hub import load_hub
from dimba_jax.data.jsonl import load_jsonl
from dimba_jax.data.quora import load_quora_tsv
from dimba_jax.data.synthetic import load_synthetic

_HOW_TO_GET_DATA = """\
config.data.path is not set, and this recipe reads its pairs from disk. Choose one:
  1. A folder of train.jsonl, valid.jsonl and test.jsonl with the keys src and trg. DiffuSeq publishes its
     QQP split in this form (github.com/Shark-NLP/DiffuSeq):  --config.data.path=FOLDER
  2. Quora's own release, quora_duplicate_questions.tsv; the same split is cut out of it:
       --config.data.source=quora_tsv --config.data.path=FILE
  3. A dataset of the Hugging Face hub (pip install -e '.[hub]'):
       --config.data.source=hub --config.data.path=OWNER/NAME --config.data.columns="('SOURCE', 'TARGET')"
  4. No data at hand: --config=configs/quickstart.py generates its own, nothing is downloaded."""


def load_split(config: DataConfig, split: Split) -> list[Example]:
    """All examples of one split, in the order of the source, not normalised.

    Raises:
      DataError: data that is missing or malformed; the message names the file and the line, or what to set.
    """
    if split not in ("train", "valid", "test"):
        raise DataError(f"split={split!r}: choose one of 'train', 'valid', 'test'")
    if config.source == "text":
        raise DataError("config.data.source='text' holds no pairs of source and target: this needs a model of pairs")
    if config.source == "synthetic":
        return load_synthetic(config.synthetic, split)
    if config.source == "hub":
        return load_hub(config.path, split, config.columns)
    if not config.path:
        raise DataError(_HOW_TO_GET_DATA)
    if config.source == "quora_tsv":
        return load_quora_tsv(Path(config.path), split)
    files = {"train": config.train_files, "valid": (config.valid_file,), "test": (config.test_file,)}
    return load_jsonl(Path(config.path), files[split], config.columns)
