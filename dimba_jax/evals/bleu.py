"""Sentence BLEU-4 with smoothing 4 of Chen and Cherry (2014), on n-grams counted once per sentence.

The figures equal `nltk.translate.bleu_score.sentence_bleu(..., SmoothingFunction().method4)` to the
last bit. Minimum-Bayes-risk decoding compares every sample of a row with every other one; counting a
sentence's n-grams once instead of once per pair is what makes that a matter of seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

ORDER = 4
SMOOTHING_K = 5.0


class Ngrams(NamedTuple):
    """A tokenised sentence: its length in words and its n-gram counts for n = 1..4."""

    length: int
    counts: tuple[Counter[tuple[str, ...]], ...]

    @classmethod
    def of(cls, words: Sequence[str]) -> Ngrams:
        """Counts the n-grams of `words`."""
        counts = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, ORDER + 1))
        return cls(len(words), tuple(counts))


def sentence_bleu(hypothesis: Ngrams, references: Sequence[Ngrams]) -> float:
    """BLEU-4 of one sentence against one or more references, in [0, 1].

    Matches are clipped by the largest count in any reference; the brevity penalty takes the reference
    nearest in length (the shorter of two equally near). The i-th order without a match counts as
    ln(length) / (5 * 2^i) matches. An empty hypothesis, or one that shares no word, scores 0.

    Raises:
      ValueError: no reference was given.
    """
    if not references:
        raise ValueError("sentence_bleu got no reference: give at least one")
    length = hypothesis.length
    matches = [_clipped(hypothesis, references, n) for n in range(ORDER)]
    if matches[0] == 0:
        return 0.0
    logs = []
    unmatched = 0
    for n, match in enumerate(matches):
        possible = max(1, length - n)
        precision = match / possible
        if match == 0 and length > 1:
            unmatched += 1
            precision = 1 / (2**unmatched * SMOOTHING_K / math.log(length)) / possible
        if precision > 0:  # a one-word hypothesis has no longer n-grams and is judged on its word alone
            logs.append(0.25 * math.log(precision))
    return _brevity_penalty(length, references) * math.exp(math.fsum(logs))


def _clipped(hypothesis: Ngrams, references: Sequence[Ngrams], n: int) -> int:
    if len(references) == 1:
        reference = references[0].counts[n]
        return sum(min(count, reference[ngram]) for ngram, count in hypothesis.counts[n].items() if ngram in reference)
    return sum(
        min(count, max(reference.counts[n][ngram] for reference in references))
        for ngram, count in hypothesis.counts[n].items()
    )


def _brevity_penalty(length: int, references: Sequence[Ngrams]) -> float:
    _, nearest = min((abs(reference.length - length), reference.length) for reference in references)
    return 1.0 if length > nearest else math.exp(1 - nearest / length)
