"""The ids that every tokenizer shares: PAD 0, EOS 1, UNK 2. MASK is no tokenizer's: it is the id behind the last."""

from __future__ import annotations

from collections.abc import Sequence

from dimba_jax.data.examples import DataError

PAD, EOS, UNK = 0, 1, 2
SPECIALS = 3


def until_end(ids: Sequence[int], vocab_size: int) -> list[int]:
    """The ids before the first EOS.

    Raises:
      DataError: one of all the ids is none of a vocabulary of this size.
    """
    ids = [int(id) for id in ids]
    for id in ids:
        if not 0 <= id < vocab_size:
            raise DataError(f"token {id} is none of this tokenizer's, 0 to {vocab_size - 1}")
    return ids[: ids.index(EOS)] if EOS in ids else ids
