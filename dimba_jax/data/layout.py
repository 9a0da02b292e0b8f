"""Rows of token ids in memory, and what became of the texts they were made from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Int

from dimba_jax.data.examples import Split
from dimba_jax.data.vocabulary import EOS, PAD


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
    left_over: int = 0  # tokens behind the last full row, where text is packed

    def __str__(self) -> str:
        if self.left_over:
            return f"{self.split}: {self.rows:,} full rows; {self.left_over:,} tokens behind the last one left out"
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


def lengths(ids: Sequence[Sequence[int]]) -> Int[np.ndarray, " rows"]:
    return np.fromiter(map(len, ids), np.int64, len(ids))


def pad(ids: Sequence[Sequence[int]], length: int) -> tuple[Int[np.ndarray, "rows l"], Int[np.ndarray, " rows"]]:
    """Rows of `length` positions, cut where they are longer, each with its EOS; and the positions each takes."""
    kept = np.minimum(lengths(ids), length - 1)
    flat = itertools.chain.from_iterable(row[: length - 1] for row in ids)
    tokens = np.full((len(ids), length), PAD, np.int32)
    tokens[np.arange(length) < kept[:, None]] = np.fromiter(flat, np.int32, int(kept.sum()))
    tokens[np.arange(len(ids)), kept] = EOS
    return tokens, (kept + 1).astype(np.int32)
