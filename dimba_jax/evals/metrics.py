"""Metrics of one row besides BLEU: ROUGE-L, distinct n-grams, BLEU between the samples of a row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import combinations

from dimba_jax.evals.bleu import Ngrams


def rouge_l(hypothesis: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure, no stemmer, the best over the references, in [0, 1]."""
    return _rouge_scorer().score_multi(list(references), hypothesis)["rougeL"].fmeasure


@functools.cache
def _rouge_scorer():
    from rouge_score import rouge_scorer  # imports nltk: a second that commands which score nothing need not wait

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def distinct(sentences: Sequence[Ngrams], n: int) -> float:
    """Distinct n-grams over all n-grams of the sentences together, in [0, 1]; 0 if they hold none.

    dist-1 is this of one sentence, div-4 of the samples of a row.
    """
    total = sum(sentence.counts[n - 1].total() for sentence in sentences)
    return len(set().union(*(sentence.counts[n - 1] for sentence in sentences))) / total if total else 0.0


def self_bleu(similarity: Sequence[Sequence[float]]) -> float:
    """Mean BLEU over the pairs i < j of a row's samples; high when the samples resemble one another.

    `similarity[i][j]` is the BLEU of sample i against sample j as its reference; at least two samples.
    """
    pairs = [similarity[i][j] for i, j in combinations(range(len(similarity)), 2)]
    return sum(pairs) / len(pairs)


def ibleu(bleu: float, bleu_source: float) -> float:
    """iBLEU of Sun and Zhou (2012): .8 BLEU(reference) - .2 BLEU(source). Copying the source is punished."""
    return 0.8 * bleu - 0.2 * bleu_source
