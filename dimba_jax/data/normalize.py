"""Text normalisation before the tokenizer, and before the metrics."""

from __future__ import annotations

import unicodedata
from typing import Literal

Mode = Literal["none", "lower", "bert_basic"]

# Blocks of Han ideographs, which BERT puts between spaces: each is a word of its own. Kana and Hangul are not.
_HAN = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def normalize(text: str, mode: Mode) -> str:
    """The text as tokenizers and metrics see it.

    `none` leaves it alone; `lower` lower-cases; `bert_basic` is the basic tokenisation of uncased BERT
    (which the published scores of DiffuSeq pass through), its tokens joined by single spaces.

    Raises:
      ValueError: the mode is none of the three.
    """
    if mode == "none":
        return text
    if mode == "lower":
        return text.lower()
    if mode == "bert_basic":
        return bert_basic(text)
    raise ValueError(f"normalize={mode!r}: choose one of 'none', 'lower', 'bert_basic'")


def bert_basic(text: str) -> str:
    """Lower case, no accents, no control characters, punctuation and Han characters spaced."""
    if text.isascii():  # nearly all English text: one pass suffices, composition and accents do not arise
        return " ".join(text.translate(_ASCII).lower().split())
    cleaned = unicodedata.normalize("NFC", text.translate(_CLEAN))
    folded = unicodedata.normalize("NFD", cleaned.lower())
    return " ".join(folded.translate(_SPLIT).split())


class _Table(dict[int, str]):
    """A `str.translate` table that works a character out when it first meets it."""

    def __init__(self, rule) -> None:
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = mapped = self._rule(chr(code))
        return mapped


def _clean(char: str) -> str:
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if category[0] == "C" or char == "\ufffd":  # control, format, private, unassigned; what failed to decode
        return ""
    if any(first <= ord(char) <= last for first, last in _HAN):
        return f" {char} "
    return char


def _split(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Mn":  # a combining accent
        return ""
    # ASCII symbols such as $ + < ^ ` count as punctuation although Unicode calls them symbols.
    symbol = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return f" {char} " if symbol or category[0] == "P" else char


_CLEAN = _Table(_clean)
_SPLIT = _Table(_split)
_ASCII = _Table(lambda char: _split(cleaned) if len(cleaned := _clean(char)) == 1 else cleaned)
