"""Sentencepiece: pieces learned from a run's own text, in two forms.

The plain one treats blanks as separators and takes rare characters as unknown, which suits normalised sentences.
The lossless one keeps all white space and spells what has no piece in bytes, so that its ids are the text itself.
"""

from __future__ import annotations

import base64
import collections
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dimba_jax.data.examples import DataError, check_text
from dimba_jax.data.vocabulary import EOS, PAD, UNK, until_end

_BLANK = "\u2581"  # how sentencepiece writes a blank; in a text, the character itself is spelt in bytes
_SEPARATOR = re.compile(f"([\n{_BLANK}])")
# Each part of it is altered by some model that is not lossless: blanks, compatible characters, controls, rare ones.
_PROBE = "  a \t\n\n b\r\n \ufb01\u00bd\uff21 \x00\u200b\u0301\U0001f40d "
LONGEST_LINE = 1 << 12  # characters; longer ones are cut for the lossless trainer, which would leave them out


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
            self.spelling = tuple(self._spell(id) for id in range(self.vocab_size))
        except (RuntimeError, UnicodeDecodeError) as error:  # the latter also for what the former would say
            raise DataError(f"{name} is no sentencepiece model: {' '.join(str(error).split())}") from None
        found = {"pad": self._pieces.pad_id(), "eos": self._pieces.eos_id(), "unk": self._pieces.unk_id()}
        if found != {"pad": PAD, "eos": EOS, "unk": UNK}:
            raise DataError(
                f"{name} has the special ids {found}, expected pad {PAD}, eos {EOS}, unk {UNK}; "
                "train it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1, or leave config.tokenizer.model empty"
            )
        byte_ids = {self.spelling[id]: id for id in range(self.vocab_size) if self._pieces.is_byte(id)}
        self._separators: dict[str, list[int]] = {}
        if len(byte_ids) == 256:
            self._separators = {
                "\n": self._pieces.encode("\n"),
                _BLANK: [byte_ids[bytes([byte])] for byte in _BLANK.encode("utf-8")],
            }
        self.lossless = bool(self._separators) and self._text_of(self._exact_ids([_PROBE])[0]) == _PROBE

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._exact_ids(texts) if self.lossless else self._threaded(list(texts))

    def encode_document(self, text: str) -> Int[np.ndarray, " n"]:
        """A tokenizer that is not lossless reads every line by itself, and the breaks between them are lost."""
        ids = self.encode_batch([text] if self.lossless else text.split("\n"))
        return np.fromiter(itertools.chain.from_iterable(ids), np.int32, sum(map(len, ids)))

    def decode(self, ids: Sequence[int]) -> str:
        kept = [id for id in until_end(ids, self.vocab_size) if id != PAD]
        return self._text_of(kept) if self.lossless else self._pieces.decode(kept)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model": base64.b64encode(self.model).decode("ascii")}

    def _exact_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Line by line, so that a long text is shared out among the threads."""
        parts = [_SEPARATOR.split(text) for text in texts]  # of each: text, separator, text, …
        encoded = iter(self._threaded([part for row in parts for part in row[::2]]))
        out = []
        for row in parts:
            ids = list(next(encoded))
            for separator in row[1::2]:
                ids += self._separators[separator]
                ids += next(encoded)
            out.append(ids)
        return out

    def _threaded(self, texts: list[str]) -> list[list[int]]:
        try:
            return self._pieces.encode(texts, num_threads=os.cpu_count() or 1)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_text(text, "a text")
            raise

    def _text_of(self, ids: Sequence[int]) -> str:
        return b"".join(self.spelling[id] for id in ids).decode("utf-8", errors="replace")

    def _spell(self, id: int) -> bytes:
        if self._pieces.is_control(id) or self._pieces.is_unknown(id):
            return b""
        piece = self._pieces.id_to_piece(id)
        if self._pieces.is_byte(id):
            return bytes([int(piece[1:-1], 16)])  # "<0x41>"
        return piece.replace(_BLANK, " ").encode("utf-8")


def train_sentencepiece(texts: Sequence[str], vocab_size: int, *, lossless: bool = False) -> bytes:
    """A unigram model of at most `vocab_size` pieces, serialised. The same texts give the same bytes.

    Args:
      lossless: blanks are pieces like others, line breaks and tabs have one each, and 256 pieces are kept for
        the bytes of rare characters: decode(encode(text)) is the text, whatever it holds.

    Raises:
      DataError: sentencepiece cannot make a model of this size from these texts.
    """
    import sentencepiece

    form: dict[str, Any]
    if lossless:
        texts = list(_trainable(texts))
        form = dict(
            character_coverage=0.9995,
            byte_fallback=True,
            user_defined_symbols=["\n", "\t"],
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_by_unicode_script=False,  # "(self" and "<unk>" may be pieces: 4% fewer tokens on WikiText-2
            # the usual names would be cut out of the text: "<unk>" stands 54,625 times in WikiText-2
            pad_piece="\ue000pad", eos_piece="\ue000eos", unk_piece="\ue000unk",
        )  # fmt: skip
    else:
        form = dict(character_coverage=_coverage(texts, vocab_size))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain(texts, _repeated_words(texts, " " if lossless else "")),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=-1,
            normalization_rule_name="identity",
            max_sentence_length=1 << 16,
            num_threads=1,  # more would change the order of sums, and are no faster here
            minloglevel=2,
            **form,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"cannot train a tokenizer of vocab_size={vocab_size} on {len(texts)} texts: {error}") from None
    return model.getvalue()


def _trainable(texts: Sequence[str]) -> Iterator[str]:
    """Lines without what the trainer would leave them out for: tabs, the zero byte, the blank's sign, their length."""
    for text in texts:
        for part in re.split(f"[\n\t\x00{_BLANK}\u2585]", text):
            for start in range(0, len(part), LONGEST_LINE):
                yield part[start : start + LONGEST_LINE]


def _repeated_words(texts: Sequence[str], before: str) -> Iterator[str]:
    """Every word that occurs twice or more, written twice without a space between.

    The trainer only considers strings that stand in two different words. A whole word that is part of no
    other ("goldfish") would be none, however common, and be spelt in fragments; so it gets a second word to
    stand in. Measured on QQP at 8,192 pieces: 12.8 tokens a text instead of 14.0, and half as many too long;
    on WikiText-2, lossless: 2.67 million tokens instead of 3.28.
    """
    counts = collections.Counter(itertools.chain.from_iterable(text.split() for text in texts))
    return (before + word * 2 for word, count in sorted(counts.items()) if count > 1)


def _coverage(texts: Sequence[str], vocab_size: int) -> float:
    """The share of the text whose characters get a piece: all, unless that would take over half the pieces."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    kept = sum(count for _, count in counts.most_common(vocab_size // 2))
    return max(kept / max(counts.total(), 1), 0.98)  # the least that sentencepiece takes
