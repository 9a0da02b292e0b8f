"""Texts with something left open, as rows: a beginning to go on from, or gaps `[[n]]` of n tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from dimba_jax.config import ConfigError, DataConfig
from dimba_jax.data.normalize import normalize
from dimba_jax.data.tokenizers import EOS, PAD, Tokenizer

MOST = 1 << 20  # tokens of a row: a slip of the finger should not ask for more memory than there is
_GAP = re.compile(r"\[\[(\d+)\]\]")


@dataclass(frozen=True)
class OpenRows:
    """Rows of one length. Behind a shorter row's end there is PAD, which is not visible."""

    tokens: Int[np.ndarray, "b l"]
    editable: Bool[np.ndarray, "b l"]
    visible: Bool[np.ndarray, "b l"]

    def given(self, row: int) -> int:
        """How many tokens stand in front of the row's first open position."""
        return int(self.editable[row].argmax())

    def is_beginning(self, row: int) -> bool:
        """Whether all behind the first open position is open."""
        return bool((self.editable[row] == self.visible[row])[self.given(row) :].all())


def open_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: DataConfig,
    *,
    length: int | None = None,
    multiple: int = 1,
    gaps: bool = True,
) -> OpenRows:
    """Rows of running text (`config.source` "text") with their open positions.

    A text without a gap is gone on with up to `length` tokens, its own included (None: a training row's). A text
    with gaps is a row of its own length, each gap open and all else given; where training rows are padded,
    EOS ends it and PAD fills it up to a training row. All rows get the length of the longest, rounded up to
    a `multiple`. `gaps` False takes `[[12]]` for text like any other.

    Raises:
      ConfigError: a length that is none, or that no text would read, since all have gaps; a text that leaves nothing
        open within it; a gap of no token, or of more than fit any memory.
    """
    if length is not None and gaps and texts and all(_GAP.search(text) for text in texts):
        raise ConfigError(f"length={length}: a text with gaps has its own length; leave it out, or the gaps")
    length = config.target_length if length is None else length
    if length < 1:
        raise ConfigError(f"length={length}: must be at least 1 token")
    if length > MOST:
        raise ConfigError(f"length={length}: at most {MOST:,} tokens are written in one row")
    parts = [
        _encode(tokenizer, _GAP.split(text) if gaps else [text], config, length, f"text {i + 1} of {len(texts)}")
        for i, text in enumerate(texts)
    ]
    longest = max(len(ids) for ids, _ in parts)
    shape = (len(texts), -(-longest // multiple) * multiple)
    tokens, editable, visible = np.full(shape, PAD, np.int32), np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (ids, free) in enumerate(parts):
        tokens[row, : len(ids)], editable[row, : len(ids)], visible[row, : len(ids)] = ids, free, True
    return OpenRows(tokens, editable, visible)


def _encode(
    tokenizer: Tokenizer, pieces: Sequence[str], config: DataConfig, length: int, name: str
) -> tuple[list[int], list[bool]]:
    """The tokens of a row, PAD where it is open, and where it is; of text, gap's size, text, size, ..., text."""
    ids: list[int] = []
    free: list[bool] = []
    for known, size in zip(pieces[::2], [*pieces[1::2], "0"], strict=True):
        if len(size.lstrip("0")) > len(str(MOST)) or int(size) > MOST - len(ids):
            raise ConfigError(f"{name} has a gap of {size[:20]} tokens: at most {MOST:,} are written in one row")
        found = tokenizer.encode(normalize(known, config.normalize)) if known else []
        ids += found + [PAD] * int(size)
        free += [False] * len(found) + [True] * int(size)
    if len(pieces) == 1:
        if len(ids) >= length:
            raise ConfigError(
                f"{name} has {len(ids)} tokens, which leaves none of the {length} to write: "
                "give a shorter one or a greater length"
            )
        return ids + [PAD] * (length - len(ids)), free + [True] * (length - len(ids))
    if "0" in {size.lstrip("0") or "0" for size in pieces[1::2]}:
        raise ConfigError(f"{name} has a gap of 0 tokens: [[n]] is a gap of n, at least 1")
    if config.text.layout == "padded":
        rest = max(config.target_length - len(ids) - 1, 0)
        return ids + [EOS] + [PAD] * rest, free + [False] * (rest + 1)
    return ids, free


def readable(tokenizer: Tokenizer, row: Int[np.ndarray, " l"]) -> str:
    """The text of a row up to its end, each position that is still masked (the id behind all tokens) shown as a box.

    With masks in it the text is spelt piece by piece: no other way of decoding leaves room for what is not there.
    """
    ids = [int(token) for token in row]
    mask_id = tokenizer.vocab_size
    if mask_id not in ids:
        return tokenizer.decode(ids)
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    text = b"".join(BOX if id == mask_id else tokenizer.spelling[id] for id in ids).decode("utf-8", errors="replace")
    return text if tokenizer.lossless else text.strip()


BOX = "▯".encode()
