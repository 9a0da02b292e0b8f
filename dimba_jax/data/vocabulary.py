"""The ids that every tokenizer shares: PAD 0, EOS 1, UNK 2. MASK is no tokenizer's: it is the id behind the last."""

from __future__ import annotations

from collections.abc import Sequence

PAD, EOS, UNK = 0, 1, 2
SPECIALS = 3


def until_end(ids: Sequence[int]) -> list[int]:
    """The ids before the first EOS."""
    ids = [int(id) for id in ids]
    return ids[: ids.index(EOS)] if EOS in ids else ids
