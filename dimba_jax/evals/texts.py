"""Texts to be scored, as rows, with what the rows stand for: every token of them, also of the last, shorter row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from dimba_jax.config import ConfigError, DataConfig
from dimba_jax.data.corpus import load_texts
from dimba_jax.data.examples import DataError, Split, read_text
from dimba_jax.data.layout import Rows
from dimba_jax.data.normalize import normalize
from dimba_jax.data.rows import encode_split
from dimba_jax.data.text import text_rows
from dimba_jax.data.tokenizers import EOS, PAD, UNK, Tokenizer
from dimba_jax.evals.baselines import Counts

Positions = dict[str, Int[np.ndarray, "rows l"] | Bool[np.ndarray, "rows l"]]  # tokens, target, valid


@dataclass(frozen=True)
class ScoredText:
    """Rows, and the text of their target side."""

    name: str
    rows: Positions
    ids: Int[np.ndarray, " n"]  # the tokens that are text or an end token, in order
    text: str  # what they stand for, an end token for a line break
    counts: Counts
    unknown: int  # tokens that stand for text that is not known any more

    def __len__(self) -> int:
        return len(self.rows["tokens"])


def file_text(path: str | Path, config: DataConfig, tokenizer: Tokenizer, limit: int | None = None) -> ScoredText:
    """A file of UTF-8 text, laid out as the model's own.

    Args:
      limit: the first so many rows alone.

    Raises:
      ConfigError: a model of pairs.
      DataError: the file is missing, empty, or not UTF-8 (the line is named).
    """
    if config.source_length:
        raise ConfigError(
            f"--input={path}: this model was trained on pairs (data.source_length={config.source_length}), of which a "
            "text file has none: leave --input out, and its own split is scored"
        )
    return _scored(str(path), document_rows([read_text(Path(path))], config, tokenizer), tokenizer, limit)


def split_text(config: DataConfig, tokenizer: Tokenizer, split: Split, limit: int | None = None) -> ScoredText:
    """A split of the model's own data; of pairs, the targets, behind their sources.

    Raises:
      DataError: see `dimba_jax.data.sources.load_split` and `load_texts`.
    """
    if config.source == "text":
        rows = document_rows(load_texts(config, split), config, tokenizer)
    else:
        rows = all_rows(encode_split(config, tokenizer, split)[0])
    return _scored(split, rows, tokenizer, limit)


def document_rows(texts: Sequence[str], config: DataConfig, tokenizer: Tokenizer) -> Positions:
    """Rows of documents in the layout of the config, none of their text left out.

    packed: as in training, except that what is left behind the last full row is a row as well. The positions
    it does not need are neither target nor visible. padded: a row a line; lines that are too long are cut.

    Raises:
      DataError: there is no text in them.
    """
    length, mode = config.target_length, config.normalize
    if config.text.layout == "padded":
        return all_rows(text_rows(texts, tokenizer, length, "padded", mode=mode))
    end = np.array([EOS], np.int32)
    parts = [part for text in texts for part in (tokenizer.encode_document(_normalized(text, config)), end)]
    stream = np.concatenate(parts[:-1]) if parts else end[:0]
    if not len(stream):
        raise DataError("nothing of the text is left once it is normalised: give more of it")
    valid = np.arange(-(-len(stream) // length) * length) < len(stream)
    tokens = np.full(len(valid), PAD, np.int32)
    tokens[valid] = stream
    valid = valid.reshape(-1, length)
    return {"tokens": tokens.reshape(-1, length), "target": valid, "valid": valid}


def all_rows(rows: Rows) -> Positions:
    """tokens, target and valid of all rows."""
    batch = rows.batch(np.arange(len(rows)))
    return {"tokens": batch["tokens"], "target": batch["target"], "valid": batch["valid"]}


def counted_ids(rows: Positions) -> Int[np.ndarray, " n"]:
    """The tokens of the target side, without padding, in order."""
    return rows["tokens"][rows["target"] & rows["valid"]]


def spelled(ids: Int[np.ndarray, " n"], tokenizer: Tokenizer) -> str:
    """The text that tokens stand for, an end token for a line break."""
    spelling = [b"\n" if id == EOS else piece for id, piece in enumerate(tokenizer.spelling)]
    text = b"".join(map(spelling.__getitem__, ids.tolist())).decode("utf-8", errors="replace")
    # one that is not lossless writes a blank before each line, which was not there
    return text if tokenizer.lossless else text.removeprefix(" ").replace("\n ", "\n")


def _scored(name: str, rows: Positions, tokenizer: Tokenizer, limit: int | None) -> ScoredText:
    rows = {key: values[:limit] for key, values in rows.items()}
    ids = counted_ids(rows)
    text = spelled(ids, tokenizer)
    return ScoredText(name, rows, ids, text, Counts.of(text, len(ids)), int((ids == UNK).sum()))


def _normalized(text: str, config: DataConfig) -> str:
    if config.normalize == "none":
        return text
    return "\n".join(normalize(line, config.normalize) for line in text.split("\n"))
