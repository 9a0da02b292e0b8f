"""From the examples of a split to rows [source, EOS, PAD…][target, EOS, PAD…], encoded once and kept in memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from dimba_jax.config import DataConfig
from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.layout import Batch, DataReport, Rows, lengths, pad
from dimba_jax.data.normalize import normalize
from dimba_jax.data.sources import load_split
from dimba_jax.data.text import encode_texts, load_texts
from dimba_jax.data.tokenizers import PAD, Tokenizer
from dimba_jax.progress import announce

__all__ = ["Batch", "DataReport", "Rows", "encode_examples", "encode_prompts", "encode_split"]


def encode_split(config: DataConfig, tokenizer: Tokenizer, split: Split) -> tuple[Rows, DataReport]:
    """Loads and encodes a split: pairs, each (source, reference) a row, or running text (`data/text.py`).

    In training, rows that do not fit are left out, and `train_extra_direction` adds every pair the other way
    round. In validation and test nothing is left out: what is too long is cut. The report, also logged, counts.

    Raises:
      DataError: see `load_split` and `load_texts`; or no training row fits.
    """
    if config.source == "text":
        texts = load_texts(config, split)
        mode = config.normalize
        rows, report = encode_texts(texts, tokenizer, config.target_length, config.text.layout, split, mode=mode)
    else:
        rows, report = encode_examples(load_split(config, split), config, tokenizer, split)
    announce(f"data: {report}")
    return rows, report


def encode_examples(
    examples: Sequence[Example], config: DataConfig, tokenizer: Tokenizer, split: Split
) -> tuple[Rows, DataReport]:
    """`encode_split` of examples in memory."""
    pairs = [(e.source, target, e.row) for e in examples for target in e.targets]
    source = _encode([pair[0] for pair in pairs], config, tokenizer)
    target = _encode([pair[1] for pair in pairs], config, tokenizer)
    row = np.array([pair[2] for pair in pairs], np.int64)
    if split == "train" and config.train_extra_direction:
        source, target, row = source + target, target + source, np.concatenate([row, row])

    source_fits = lengths(source) < config.source_length  # one position is the end token's
    target_fits = lengths(target) < config.target_length
    keep = source_fits & target_fits if split == "train" else np.ones(len(row), bool)
    report = DataReport(split, len(row), int(keep.sum()), int((~source_fits).sum()), int((~target_fits).sum()))
    if not report.used:
        raise DataError(
            f"none of the {report.rows} rows of {split!r} fits: raise config.data.source_length="
            f"{config.source_length} or config.data.target_length={config.target_length}"
        )
    source_tokens, source_used = pad(list(itertools.compress(source, keep)), config.source_length)
    target_tokens, target_used = pad(list(itertools.compress(target, keep)), config.target_length)
    tokens = np.concatenate([source_tokens, target_tokens], axis=1)
    return Rows(tokens, source_used, target_used, row[keep], config.source_length), report


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], config: DataConfig
) -> dict[str, Int[np.ndarray, "b l"] | Bool[np.ndarray, "b l"]]:
    """`tokens`, `target` and `valid` of rows whose target is yet to be written (PAD, not valid).

    A prompt that is too long is cut to fit.
    """
    source, used = pad(_encode(prompts, config, tokenizer), config.source_length)
    shape = (len(source), config.source_length + config.target_length)
    tokens = np.full(shape, PAD, np.int32)
    tokens[:, : config.source_length] = source
    position = np.arange(shape[1])
    target = np.tile(position >= config.source_length, (shape[0], 1))
    return {"tokens": tokens, "target": target, "valid": position < used[:, None]}


def _encode(texts: Sequence[str], config: DataConfig, tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer.encode_batch([normalize(text, config.normalize) for text in texts])
