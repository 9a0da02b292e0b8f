"""SARI of a corpus (Xu et al. 2016): were the right words kept, deleted and added?

Of the formulas in use this is the EASSE toolkit's (Alva-Manchego et al. 2019), that of most figures published on ASSET:
counts are summed over the corpus, and F1 is taken for each n = 1..4, of deleting, too. What is nowhere done scores 0:
a copy of the source has marks for keeping alone. (By Hugging Face's `evaluate` it has full marks for deleting, a
third of the whole.) Words are the caller's: reports use BERT's basic ones where EASSE takes mteval-13a's, so that their
figures may differ from published ones, which are also a hundred times as large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dimba_jax.evals.bleu import ORDER, Ngrams

Counts = Counter[tuple[str, ...]]
Edits = np.ndarray  # [3, 3, 4]: adding, keeping, deleting; n-grams rightly edited, edited, to be edited; n = 1..4


def edits(output: Ngrams, source: Ngrams, references: Sequence[Ngrams]) -> Edits:
    """Counts of one row; those of a corpus are their sum. Each reference counts once, additions once for all.

    Raises:
      ValueError: no reference was given.
    """
    if not references:
        raise ValueError("SARI got no reference: give at least one")
    return np.stack([_of_order(output, source, references, n) for n in range(ORDER)], axis=-1)


def _of_order(output: Ngrams, source: Ngrams, references: Sequence[Ngrams], n: int) -> Edits:
    wanted: Counts = sum((reference.counts[n] for reference in references), Counter())
    before, after = _times(source.counts[n], len(references)), _times(output.counts[n], len(references))
    added, to_add = after.keys() - before.keys(), wanted.keys() - before.keys()
    kept, to_keep = before & after, before & wanted
    deleted, to_delete = before - after, before - wanted
    return np.array([
        [len(added & to_add), len(added), len(to_add)],
        [(kept & to_keep).total(), kept.total(), to_keep.total()],
        [(deleted & to_delete).total(), deleted.total(), to_delete.total()],
    ])  # fmt: skip


def _times(counts: Counts, references: int) -> Counts:
    """A sentence's counts beside those of all references together."""
    return Counter({ngram: references * count for ngram, count in counts.items()})


def sari(counts: Edits) -> float:
    """SARI of the summed counts, in [0, 1]: the mean over adding, keeping and deleting of their mean F1 over n."""
    right, done, asked = counts[:, 0], counts[:, 1], counts[:, 2]
    # 2PR / (P + R), where P = right / done and R = right / asked
    return float(np.mean(2 * right / np.maximum(done + asked, 1)))
