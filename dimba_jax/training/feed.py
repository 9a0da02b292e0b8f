"""Batches on the device, one ahead of the step that uses them."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from dimba_jax.data.rows import Batch
from dimba_jax.parallel import shard_batch


def model_inputs(batch: Batch) -> dict[str, np.ndarray]:
    """The part of a batch that goes to the device."""
    return {"tokens": batch["tokens"], "target": batch["target"], "valid": batch["valid"]}


class BatchIterator(Protocol):
    """An endless iterator over this process's rows of the batches, whose place can be kept and set."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class Feed:
    """Hands out placed batches; `prefetch` reads the next one while the device is busy with the last."""

    def __init__(self, source: BatchIterator, mesh: Mesh):
        self._source, self._mesh = source, mesh
        self._ahead: tuple[dict[str, jax.Array], np.ndarray] | None = None
        self._state = source.get_state()

    def take(self) -> tuple[dict[str, jax.Array], np.ndarray]:
        """The next batch, and the ids of its rows."""
        self.prefetch()
        assert self._ahead is not None
        batch, self._ahead = self._ahead, None
        self._state = self._source.get_state()
        return batch

    def prefetch(self) -> None:
        """Reads and places the next batch, if that has not been done."""
        if self._ahead is None:
            host = next(self._source)
            self._ahead = shard_batch(self._mesh, model_inputs(host)), host["row"]

    def ahead(self) -> dict[str, jax.Array]:
        """The batch that `take` returns next."""
        self.prefetch()
        assert self._ahead is not None
        return self._ahead[0]

    def state(self) -> Any:
        """The source's place before the next batch that `take` returns, read ahead or not."""
        return self._state

    def close(self) -> None:
        """Ends what the source has running."""
        self._source.close()
