"""Running text as rows without a source side: one stream cut into full rows, or a padded row for each line."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from dimba_jax.data.corpus import load_texts
from dimba_jax.data.examples import DataError, Split
from dimba_jax.data.layout import DataReport, Rows, lengths, pad
from dimba_jax.data.normalize import Mode, normalize
from dimba_jax.data.tokenizers import EOS, PAD, UNK, Tokenizer
from dimba_jax.progress import announce

__all__ = ["Coverage", "byte_counts", "coverage", "encode_texts", "load_texts", "text_rows"]

Layout = Literal["packed", "padded"]


def text_rows(texts: Sequence[str], tokenizer: Tokenizer, length: int, layout: Layout, *, mode: Mode = "none") -> Rows:
    """Rows of `length` positions of any texts, to be evaluated: nothing is left out but the last incomplete row.

    `coverage` says what text they stand for.

    Args:
      layout: as in `encode_texts`.
      mode: the normalisation that the tokenizer's training text had, `config.data.normalize`.

    Raises:
      DataError: not enough text for a row.
    """
    return encode_texts(texts, tokenizer, length, layout, "test", mode=mode)[0]


def encode_texts(
    texts: Sequence[str], tokenizer: Tokenizer, length: int, layout: Layout, split: Split, *, mode: Mode = "none"
) -> tuple[Rows, DataReport]:
    """Texts as rows whose every position is target.

    packed: the texts make one stream, an EOS between two of them, cut into rows; what is left behind the last
    full row is dropped. `row` counts the rows. padded: every line that is not blank is a row [tokens, EOS,
    PAD…]; lines that do not fit are left out in training and cut otherwise. `row` counts the lines of all
    texts, blank ones too.

    Raises:
      DataError: not enough text for a row, or no line fits.
    """
    texts = [_normalized(text, mode) for text in texts]
    rows, report = (_packed if layout == "packed" else _padded)(texts, tokenizer, length, split)
    unknown = int((rows.tokens == UNK).sum())
    if unknown:
        announce(
            f"data: {split}: {unknown:,} tokens are unknown to the tokenizer and stand for no text; "
            "config.tokenizer.lossless=True would spell them in bytes"
        )
    return rows, report


@dataclass(frozen=True)
class Coverage:
    """What rows stand for. Likelihoods a byte, a character or a word are sums over the rows over these counts."""

    rows: int
    tokens: int  # positions that are not PAD, EOS included
    bytes: int  # of the text in UTF-8
    characters: int
    words: int  # separated by white space
    unknown: int  # tokens that stand for text that is not known any more; 0 for a lossless tokenizer


def coverage(rows: Rows, tokenizer: Tokenizer) -> Coverage:
    """The text that the target side of the rows holds, whatever was cut or dropped when they were made."""
    tokens = rows.tokens[:, rows.source_length :]
    # an end token ends a word too, and so does the end of a padded row
    spelling = [b"\n" if id == EOS else text for id, text in enumerate(tokenizer.spelling)]
    text = b"".join(map(spelling.__getitem__, tokens.ravel().tolist()))
    continued = np.array([sum(byte & 0xC0 == 0x80 for byte in piece) for piece in tokenizer.spelling], np.int64)
    size = int(byte_counts(tokens, tokenizer).sum())
    return Coverage(
        rows=len(rows),
        tokens=int((tokens != PAD).sum()),
        bytes=size,
        characters=size - int(continued[tokens].sum()),
        words=len(text.split()),
        unknown=int((tokens == UNK).sum()),
    )


def byte_counts(tokens: Int[np.ndarray, "rows l"], tokenizer: Tokenizer) -> Int[np.ndarray, " rows"]:
    """UTF-8 bytes of the text that each row stands for; PAD and EOS stand for none."""
    size = np.fromiter(map(len, tokenizer.spelling), np.int64, len(tokenizer.spelling))
    return size[tokens].sum(axis=1)


def _normalized(text: str, mode: Mode) -> str:
    return text if mode == "none" else "\n".join(normalize(line, mode) for line in text.split("\n"))


def _packed(texts: Sequence[str], tokenizer: Tokenizer, length: int, split: Split) -> tuple[Rows, DataReport]:
    end = np.array([EOS], np.int32)
    parts = [part for text in texts for part in (tokenizer.encode_document(text), end)]
    stream = np.concatenate(parts[:-1]) if parts else end[:0]
    count, left_over = divmod(len(stream), length)
    if not count:
        raise DataError(
            f"the text of {split!r} has {len(stream):,} tokens, less than one row of config.data.target_length="
            f"{length}: give more text, or choose shorter rows or data.text.layout='padded'"
        )
    tokens = stream[: count * length].reshape(count, length)
    none, full = np.zeros(count, np.int32), np.full(count, length, np.int32)
    return Rows(tokens, none, full, np.arange(count), 0), DataReport(split, count, count, 0, 0, left_over)


def _padded(texts: Sequence[str], tokenizer: Tokenizer, length: int, split: Split) -> tuple[Rows, DataReport]:
    lines = [line for text in texts for line in text.removesuffix("\n").split("\n")]
    row = np.array([number for number, line in enumerate(lines) if line.strip()], np.int64)
    ids = tokenizer.encode_batch([lines[number].removesuffix("\r") for number in row])
    fits = lengths(ids) < length  # one position is the end token's
    keep = fits if split == "train" else np.ones(len(row), bool)
    report = DataReport(split, len(row), int(keep.sum()), 0, int((~fits).sum()))
    if not report.used:
        raise DataError(
            f"none of the {report.rows} lines of {split!r} fits: raise config.data.target_length={length}, "
            "or choose data.text.layout='packed'"
        )
    tokens, used = pad(list(itertools.compress(ids, keep)), length)
    return Rows(tokens, np.zeros(len(tokens), np.int32), used, row[keep], 0), report
