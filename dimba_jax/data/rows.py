"""Rows of token ids: [source, EOS, PAD…][target, EOS, PAD…], encoded once and kept in memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Int

from dimba_jax.config import DataConfig
from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.normalize import normalize
from dimba_jax.data.sources import load_split
from dimba_jax.data.tokenizers import EOS, PAD, Tokenizer
from dimba_jax.progress import announce


class Batch(TypedDict):
    """What a training step gets."""

    tokens: Int[np.ndarray, "b l"]  # int32
    target: Bool[np.ndarray, "b l"]  # the target's positions, its EOS and PAD included: what is diffused
    valid: Bool[np.ndarray, "b l"]  # False at the padding of either side
    row: Int[np.ndarray, " b"]  # int64, the example's place in its split


@dataclass(frozen=True)
class DataReport:
    """What became of the rows of a split. A row may be too long on both sides."""

    split: Split
    rows: int
    used: int
    too_long_source: int
    too_long_target: int

    def __str__(self) -> str:
        if not (self.too_long_source or self.too_long_target):
            return f"{self.split}: {self.rows:,} rows, all fit"
        fate = "cut to fit" if self.used == self.rows else f"{self.rows - self.used:,} rows left out"
        return (
            f"{self.split}: {self.rows:,} rows, {self.used:,} used; {self.too_long_source:,} sources and "
            f"{self.too_long_target:,} targets are too long, {fate}"
        )


@dataclass(frozen=True)
class Rows:
    """Encoded rows, padded; `batch` gathers any of them."""

    tokens: Int[np.ndarray, "rows l"]
    source_used: Int[np.ndarray, " rows"]  # positions taken, EOS included
    target_used: Int[np.ndarray, " rows"]
    row: Int[np.ndarray, " rows"]
    source_length: int

    def __len__(self) -> int:
        return len(self.tokens)

    def fingerprint(self) -> str:
        """A digest of the rows and their order."""
        digest = hashlib.sha256(self.tokens.tobytes())
        digest.update(np.stack([self.source_used, self.target_used]).tobytes())
        return digest.hexdigest()[:16]

    def batch(self, indices: Sequence[int] | Int[np.ndarray, " b"]) -> Batch:
        at = np.asarray(indices)
        position = np.arange(self.tokens.shape[1])
        target = position >= self.source_length
        end = np.where(target, self.source_length + self.target_used[at, None], self.source_used[at, None])
        return Batch(
            tokens=self.tokens[at],
            target=np.tile(target, (len(at), 1)),
            valid=position < end,
            row=self.row[at],
        )


def encode_split(config: DataConfig, tokenizer: Tokenizer, split: Split) -> tuple[Rows, DataReport]:
    """Loads and encodes a split; each (source, reference) is a row.

    In training, rows that do not fit are left out, and `train_extra_direction` adds every pair the other way
    round. In validation and test nothing is left out: what is too long is cut. The report, also logged, counts.

    Raises:
      DataError: see `load_split`; or no training row fits.
    """
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

    source_fits = _lengths(source) < config.source_length  # one position is the end token's
    target_fits = _lengths(target) < config.target_length
    keep = source_fits & target_fits if split == "train" else np.ones(len(row), bool)
    report = DataReport(split, len(row), int(keep.sum()), int((~source_fits).sum()), int((~target_fits).sum()))
    if not report.used:
        raise DataError(
            f"none of the {report.rows} rows of {split!r} fits: raise config.data.source_length="
            f"{config.source_length} or config.data.target_length={config.target_length}"
        )
    source_tokens, source_used = _pad(list(itertools.compress(source, keep)), config.source_length)
    target_tokens, target_used = _pad(list(itertools.compress(target, keep)), config.target_length)
    tokens = np.concatenate([source_tokens, target_tokens], axis=1)
    return Rows(tokens, source_used, target_used, row[keep], config.source_length), report


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], config: DataConfig
) -> dict[str, Int[np.ndarray, "b l"] | Bool[np.ndarray, "b l"]]:
    """`tokens`, `target` and `valid` of rows whose target is yet to be written (PAD, not valid).

    A prompt that is too long is cut to fit.
    """
    source, used = _pad(_encode(prompts, config, tokenizer), config.source_length)
    shape = (len(source), config.source_length + config.target_length)
    tokens = np.full(shape, PAD, np.int32)
    tokens[:, : config.source_length] = source
    position = np.arange(shape[1])
    target = np.tile(position >= config.source_length, (shape[0], 1))
    return {"tokens": tokens, "target": target, "valid": position < used[:, None]}


def _encode(texts: Sequence[str], config: DataConfig, tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer.encode_batch([normalize(text, config.normalize) for text in texts])


def _lengths(ids: Sequence[Sequence[int]]) -> Int[np.ndarray, " rows"]:
    return np.fromiter(map(len, ids), np.int64, len(ids))


def _pad(ids: Sequence[Sequence[int]], length: int) -> tuple[Int[np.ndarray, "rows l"], Int[np.ndarray, " rows"]]:
    """Rows of `length` positions, cut where they are longer, each with its EOS; and the positions each takes."""
    kept = np.minimum(_lengths(ids), length - 1)
    flat = itertools.chain.from_iterable(row[: length - 1] for row in ids)
    tokens = np.full((len(ids), length), PAD, np.int32)
    tokens[np.arange(length) < kept[:, None]] = np.fromiter(flat, np.int32, int(kept.sum()))
    tokens[np.arange(len(ids)), kept] = EOS
    return tokens, (kept + 1).astype(np.int32)
