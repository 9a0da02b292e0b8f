"""Tokenizers: sentencepiece pieces, trained on the run's own text, and bytes.

Every tokenizer has the same special ids: PAD 0, EOS 1, UNK 2. Text is normalised before it comes here
(`data/normalize.py`); what a tokenizer gets it encodes as it is.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dimba_jax.config import RunConfig
from dimba_jax.data.examples import DataError
from dimba_jax.data.normalize import normalize
from dimba_jax.data.sources import load_split
from dimba_jax.files import write_whole
from dimba_jax.progress import announce

PAD, EOS, UNK = 0, 1, 2
SPECIALS = 3

MODEL_FILE = "tokenizer.model"
ORIGIN_FILE = "tokenizer.json"  # what the model beside it was trained on


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end token."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, faster."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first EOS; PAD is passed over."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `tokenizer_from_dict` is its inverse."""
        ...


class ByteTokenizer:
    """UTF-8 bytes: byte b has the id 3 + b. Nothing is unknown, so UNK never occurs."""

    vocab_size = SPECIALS + 256

    def encode(self, text: str) -> list[int]:
        return [SPECIALS + byte for byte in text.encode("utf-8")]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that form no UTF-8 (a model may well write them) become U+FFFD."""
        return bytes(id - SPECIALS for id in _until_end(ids) if id >= SPECIALS).decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class SentencePieceTokenizer:
    """A sentencepiece model, from its serialised form.

    Raises:
      DataError: not a sentencepiece model, or one whose special ids are not PAD 0, EOS 1, UNK 2.
    """

    def __init__(self, model: bytes, name: str = "the model"):
        import sentencepiece

        self.model = model
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(f"{name} is no sentencepiece model: {error}") from None
        found = {"pad": self._pieces.pad_id(), "eos": self._pieces.eos_id(), "unk": self._pieces.unk_id()}
        if found != {"pad": PAD, "eos": EOS, "unk": UNK}:
            raise DataError(
                f"{name} has the special ids {found}, expected pad {PAD}, eos {EOS}, unk {UNK}; "
                "train it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1, or leave config.tokenizer.model empty"
            )

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._pieces.encode(list(texts), num_threads=os.cpu_count() or 1)

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode([id for id in _until_end(ids) if id != PAD])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model": base64.b64encode(self.model).decode("ascii")}


def tokenizer_from_dict(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `to_dict` described.

    Raises:
      DataError: an unknown kind, or a model that cannot be read.
    """
    if values.get("kind") == "bytes":
        return ByteTokenizer()
    if values.get("kind") == "sentencepiece":
        return SentencePieceTokenizer(base64.b64decode(values["model"]), "the stored tokenizer")
    raise DataError(f"tokenizer kind {values.get('kind')!r}: expected 'sentencepiece' or 'bytes'")


def make_tokenizer(config: RunConfig, workdir: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a run: bytes, the model file the config names, or one trained on the training split.

    A trained one is kept in the workdir as `tokenizer.model` and found there again. Training is deterministic,
    so processes that share no disk arrive at the same one.

    Raises:
      DataError: a model that does not fit; or the workdir's was trained on other text or for another size.
    """
    if config.tokenizer.kind == "bytes":
        return ByteTokenizer()
    if config.tokenizer.model:
        return _load(Path(config.tokenizer.model))
    texts = training_texts(config)
    vocab_size = config.tokenizer.vocab_size
    if workdir is None:
        return SentencePieceTokenizer(train_sentencepiece(texts, vocab_size))
    path, origin_path = Path(workdir) / MODEL_FILE, Path(workdir) / ORIGIN_FILE
    origin = {"vocab_size": vocab_size, "texts": len(texts), "sha256": _fingerprint(texts)}
    if path.exists():
        known = json.loads(origin_path.read_text(encoding="utf-8")) if origin_path.exists() else None
        if known != origin:
            raise DataError(
                f"{path} was not trained on this training split with vocab_size={vocab_size} "
                f"(it was: {known}, now: {origin}). Take a new workdir, put the data settings back, "
                f"or keep it on purpose with --config.tokenizer.model={path}"
            )
        return _load(path)
    announce(f"training a tokenizer of at most {vocab_size:,} pieces on {len(texts):,} texts")
    tokenizer = SentencePieceTokenizer(train_sentencepiece(texts, vocab_size))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({origin_path: json.dumps(origin, indent=1).encode(), path: tokenizer.model})
    return tokenizer


def training_texts(config: RunConfig) -> list[str]:
    """Both sides of the training split, normalised; a source with several references counts once."""
    examples = load_split(config.data, "train")
    return [normalize(text, config.data.normalize) for e in examples for text in (e.source, *e.targets)]


def train_sentencepiece(texts: Sequence[str], vocab_size: int) -> bytes:
    """A unigram model of at most `vocab_size` pieces, serialised. The same texts give the same bytes.

    Raises:
      DataError: sentencepiece cannot make a model of this size from these texts.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain(texts, _repeated_words(texts)),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=-1,
            normalization_rule_name="identity",
            character_coverage=_coverage(texts, vocab_size),
            max_sentence_length=1 << 16,
            num_threads=1,  # more would change the order of sums, and are no faster here
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"cannot train a tokenizer of vocab_size={vocab_size} on {len(texts)} texts: {error}") from None
    return model.getvalue()


def _repeated_words(texts: Sequence[str]) -> Iterator[str]:
    """Every word that occurs twice or more, written twice without a space.

    The trainer only considers strings that stand in two different words. A whole word that is part of no
    other ("goldfish") would be none, however common, and be spelt in fragments; so it gets a second word to
    stand in. Measured on QQP at 8,192 pieces: 12.8 tokens a text instead of 14.0, and half as many too long.
    """
    counts = collections.Counter(itertools.chain.from_iterable(text.split() for text in texts))
    return (word * 2 for word, count in sorted(counts.items()) if count > 1)


def _coverage(texts: Sequence[str], vocab_size: int) -> float:
    """The share of the text whose characters get a piece: all, unless that would take over half the pieces."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    kept = sum(count for _, count in counts.most_common(vocab_size // 2))
    return max(kept / max(counts.total(), 1), 0.98)  # the least that sentencepiece takes


def _until_end(ids: Sequence[int]) -> list[int]:
    ids = [int(id) for id in ids]
    return ids[: ids.index(EOS)] if EOS in ids else ids


def _load(path: Path) -> SentencePieceTokenizer:
    try:
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DataError(f"config.tokenizer.model={path}: no such file; leave it empty to train one") from None


def _fingerprint(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8") + b"\n")
    return digest.hexdigest()
