"""What a likelihood is worth nothing without: codes that know no context, and compressors that know no language."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

BITS = 1 / math.log(2)  # bits of a nat
LARGEST = 700.0  # nats whose exponential is still a number


@dataclass(frozen=True)
class Counts:
    """What a text is divided by. An end token is a token, and stands for the end of a line: one byte, one character."""

    tokens: int
    words: int  # between white space
    bytes: int  # of UTF-8
    characters: int

    @classmethod
    def of(cls, text: str, tokens: int) -> Counts:
        return cls(tokens, len(text.split()), len(text.encode("utf-8")), len(text))


def figures(nats: float, counts: Counts, standard_error: float | None = None) -> dict[str, float | None]:
    """A text's log-loss by its tokens, words, bytes and characters.

    ppl and ppl_word are exponentials of nats a token and a word. Names that end in `_se` are standard errors
    (the perplexity's to first order). A perplexity beyond e^700 is None, as is any figure of no tokens or words.
    """

    def over(count: int, unit: float = 1.0) -> tuple[float | None, float | None]:
        if not count:
            return None, None
        return nats * unit / count, None if standard_error is None else standard_error * unit / count

    token, token_error = over(counts.tokens)
    byte, byte_error = over(counts.bytes, BITS)
    character, character_error = over(counts.characters, BITS)
    ppl = _exp(token)
    return {
        "nats_per_token": token, "nats_per_token_se": token_error,
        "ppl": ppl, "ppl_se": None if ppl is None or token_error is None else ppl * token_error,
        "ppl_word": _exp(over(counts.words)[0]),
        "bits_per_byte": byte, "bits_per_byte_se": byte_error,
        "bits_per_character": character, "bits_per_character_se": character_error,
    }  # fmt: skip


def unigram_nats(
    tokens: Int[np.ndarray, " l"], vocab_size: int, frequencies: Int[np.ndarray, " v"] | None = None
) -> float:
    """-log p of tokens drawn one by one from frequencies, in nats.

    Args:
      frequencies: of other text, to each of which 1 is added (Laplace); None takes the text's own, which no
        code of its kind can beat.
    """
    found = np.bincount(tokens, minlength=vocab_size)
    if frequencies is None:
        seen = found[found > 0]
        return float(np.sum(seen * np.log(len(tokens) / seen)))
    smooth: Float[np.ndarray, " v"] = frequencies + 1.0
    return float(np.sum(found * np.log(smooth.sum() / smooth)))


def byte_nats(text: str) -> float:
    """`unigram_nats` of a text's UTF-8 bytes under their own frequencies."""
    return unigram_nats(np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64), 256)


def compressed_nats(text: str) -> Mapping[str, float]:
    """8 bits for each byte that gzip and xz leave of a text, at their best levels, in nats; headers included."""
    data = text.encode("utf-8")
    packer = zlib.compressobj(9, wbits=31)  # 31: with gzip's header
    sizes = {
        "gzip": len(packer.compress(data) + packer.flush()),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / BITS for name, size in sizes.items()}


def _exp(nats: float | None) -> float | None:
    return math.exp(nats) if nats is not None and nats <= LARGEST else None
