"""Minimum-Bayes-risk decoding: of several samples, the one that agrees best with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def mbr_choice(candidates: Sequence[T], bleu: Callable[[T, T], float]) -> int:
    """The index argmax_i mean_{j != i} bleu(candidates[i], candidates[j]); the first of equals.

    `bleu(hypothesis, reference)` may be any gain. Exact sums keep the choice among equal candidates
    from depending on the order in which rounding errors add up.

    Raises:
      ValueError: there are no candidates.
    """
    if not candidates:
        raise ValueError("mbr_choice got no candidates: give at least one")
    gains = [
        math.fsum(bleu(hypothesis, reference) for j, reference in enumerate(candidates) if j != i)
        for i, hypothesis in enumerate(candidates)
    ]
    return gains.index(max(gains))
