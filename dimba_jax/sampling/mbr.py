"""Minimum-Bayes-risk decoding: of several samples, the one that agrees best with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, get_args

T = TypeVar("T")
Gain = Literal["bleu", "ibleu"]  # of a sample, beside another in the reference's place
GAINS: tuple[Gain, ...] = get_args(Gain)


def mbr_choice(candidates: Sequence[T], gain: Callable[[T, T], float]) -> int:
    """The index argmax_i mean_{j != i} gain(candidates[i], candidates[j]); the first of equals.

    `gain(hypothesis, reference)` is BLEU, say. Exact sums keep the choice among equal candidates
    from depending on the order in which rounding errors add up.

    Raises:
      ValueError: there are no candidates.
    """
    if not candidates:
        raise ValueError("mbr_choice got no candidates: give at least one")
    gains = [
        math.fsum(gain(hypothesis, reference) for j, reference in enumerate(candidates) if j != i)
        for i, hypothesis in enumerate(candidates)
    ]
    return gains.index(max(gains))
