"""Tokenizers: sentencepiece pieces, trained on the run's own text, and bytes.

Every tokenizer has the same special ids: PAD 0, EOS 1, UNK 2. Text is normalised before it comes here
(`data/normalize.py`); what a tokenizer gets it encodes as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from dimba_jax.config import RunConfig
from dimba_jax.data.corpus import load_texts
from dimba_jax.data.examples import DataError, check_text, parse_json, read_text
from dimba_jax.data.normalize import normalize
from dimba_jax.data.pieces import SentencePieceTokenizer, train_sentencepiece
from dimba_jax.data.sources import load_split
from dimba_jax.data.vocabulary import EOS, PAD, SPECIALS, UNK, until_end
from dimba_jax.files import write_whole
from dimba_jax.progress import announce

__all__ = [
    "EOS", "PAD", "SPECIALS", "UNK", "ByteTokenizer", "SentencePieceTokenizer", "Tokenizer", "make_tokenizer",
    "tokenizer_from_dict", "train_sentencepiece", "training_texts",
]  # fmt: skip

MODEL_FILE = "tokenizer.model"
ORIGIN_FILE = "tokenizer.json"  # what the model beside it was trained on


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether decode(encode(text)) is the text, for every text."""
        ...

    @property
    def spelling(self) -> Sequence[bytes]:
        """The UTF-8 bytes that each id stands for; the special ones stand for none.

        Put together they are the text, if the tokenizer is lossless; otherwise up to blanks and unknown characters.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end token; DataError for a text that has no UTF-8."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, faster."""
        ...

    def encode_document(self, text: str) -> Int[np.ndarray, " n"]:
        """Ids (int32) of a text of many lines and of any length, without an end token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first EOS; PAD is passed over. DataError for an id that is none of the tokenizer's."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `tokenizer_from_dict` is its inverse."""
        ...


class ByteTokenizer:
    """UTF-8 bytes: byte b has the id 3 + b. Nothing is unknown, so UNK never occurs."""

    vocab_size = SPECIALS + 256
    lossless = True
    spelling = (b"",) * SPECIALS + tuple(bytes([byte]) for byte in range(256))

    def encode(self, text: str) -> list[int]:
        check_text(text, "a text")
        return [SPECIALS + byte for byte in text.encode("utf-8")]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_document(self, text: str) -> Int[np.ndarray, " n"]:
        check_text(text, "a text")
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + SPECIALS

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that form no UTF-8 (a model may well write them) become U+FFFD."""
        return bytes(id - SPECIALS for id in until_end(ids, self.vocab_size) if id >= SPECIALS).decode(
            "utf-8", errors="replace"
        )

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bytes"}


def tokenizer_from_dict(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `to_dict` described.

    Raises:
      DataError: an unknown kind, or a model that cannot be read.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind == "bytes":
        return ByteTokenizer()
    if kind != "sentencepiece":
        raise DataError(f"the stored tokenizer is of kind {kind!r}: expected 'sentencepiece' or 'bytes'")
    try:
        model = base64.b64decode(values.get("model"), validate=True)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError) as error:
        raise DataError(f"the stored tokenizer holds no model in base64 ({error}): take another checkpoint") from None
    return SentencePieceTokenizer(model, "the stored tokenizer")


def make_tokenizer(config: RunConfig, workdir: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a run: bytes, the model file the config names, or one trained on the training split.

    A trained one is kept in the workdir as `tokenizer.model` and found there again. Training is deterministic,
    so processes that share no disk arrive at the same one.

    Raises:
      DataError: a model that does not fit; or the workdir's was trained on other text or for another size.
    """
    wanted = config.tokenizer
    if wanted.kind == "bytes":
        return ByteTokenizer()
    if wanted.model:
        return _load(Path(wanted.model), lossless=wanted.lossless)
    texts = training_texts(config)
    if workdir is None:
        return SentencePieceTokenizer(train_sentencepiece(texts, wanted.vocab_size, lossless=wanted.lossless))
    path, origin_path = Path(workdir) / MODEL_FILE, Path(workdir) / ORIGIN_FILE
    origin = {"vocab_size": wanted.vocab_size, "texts": len(texts), "sha256": _fingerprint(texts)}
    if wanted.lossless:
        origin["lossless"] = True
    if path.exists():
        known = parse_json(read_text(origin_path), str(origin_path)) if origin_path.exists() else None
        if known != origin:
            raise DataError(
                f"{path} was not trained on this training split with vocab_size={wanted.vocab_size} "
                f"(it was: {known}, now: {origin}). Take a new workdir, put the data settings back, "
                f"or keep it on purpose with --config.tokenizer.model={path}"
            )
        return _load(path, lossless=wanted.lossless)
    announce(f"training a tokenizer of at most {wanted.vocab_size:,} pieces on {len(texts):,} texts")
    tokenizer = SentencePieceTokenizer(train_sentencepiece(texts, wanted.vocab_size, lossless=wanted.lossless))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({origin_path: json.dumps(origin, indent=1).encode(), path: tokenizer.model})
    return tokenizer


def check_kept(config: RunConfig, tokenizer: Tokenizer) -> None:
    """A run that goes on keeps its tokenizer: another one that the config names would be passed over in silence.

    Raises:
      DataError: the config names a model file, it is there, and it is another tokenizer.
    """
    path = Path(config.tokenizer.model)
    if not config.tokenizer.model or not path.is_file() or not isinstance(tokenizer, SentencePieceTokenizer):
        return
    if path.read_bytes() != tokenizer.model:
        raise DataError(
            f"config.tokenizer.model={path} is not the tokenizer that this run began with, which its checkpoint "
            "holds: leave it empty to go on, or choose a new workdir"
        )


def training_texts(config: RunConfig) -> list[str]:
    """What a tokenizer is trained on: the training split, normalised.

    Of pairs, both sides, where a source with several references counts once; of running text, its lines.
    """
    mode = config.data.normalize
    if config.data.source == "text":
        lines = (line for text in load_texts(config.data, "train") for line in text.split("\n") if line.strip())
        return [normalize(line, mode) for line in lines]
    examples = load_split(config.data, "train")
    return [normalize(text, mode) for e in examples for text in (e.source, *e.targets)]


def _load(path: Path, *, lossless: bool) -> SentencePieceTokenizer:
    try:
        tokenizer = SentencePieceTokenizer(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DataError(f"config.tokenizer.model={path}: no such file; leave it empty to train one") from None
    if lossless and not tokenizer.lossless:
        raise DataError(
            f"{path} does not give every text back as it was, but config.tokenizer.lossless asks for it: "
            "set it to False, or leave config.tokenizer.model empty to train one that does"
        )
    return tokenizer


def _fingerprint(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8") + b"\n")
    return digest.hexdigest()
