"""What mixers keep of one part of a row for another part: pytrees, so that layers can be stacked."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Int


class ScanState(NamedTuple):
    """What a scan carries past the end of a segment."""

    tail: Float[Array, "b k_minus_1 d"]  # the last inputs of the convolution
    h: Float[Array, "b ..."]  # the state of the scan, float32


class KVCache(NamedTuple):
    """Keys and values of attention, in arrays of a fixed number of positions."""

    keys: Float[Array, "b capacity h p"]  # rotated
    values: Float[Array, "b capacity h p"]
    valid: Bool[Array, "b capacity"]  # what is there and visible
    length: Int[Array, ""]  # where the next segment goes


class ScanSides(NamedTuple):
    """The states with which scans enter a window of a row, from the left and from the right."""

    ahead: ScanState
    behind: Any  # a ScanState, or what else the mixer's reverse scan starts from; None: causal, or the row's end


State: TypeAlias = ScanState | KVCache
Sides: TypeAlias = ScanSides | KVCache  # attention keeps its whole row, with `length` at the window's start
