"""Batches for training and validation: shuffled, sharded over processes, resumable (grain)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from dimba_jax.config import DataConfig
from dimba_jax.data.examples import DataError
from dimba_jax.data.rows import Batch, DataReport, Rows, encode_prompts, encode_split
from dimba_jax.data.tokenizers import Tokenizer

__all__ = ["TrainIterator", "encode_prompts", "train_iterator", "valid_batches"]


class TrainIterator:
    """Endless batches; batch i is a function of the rows, the seed and i alone.

    Rows are shuffled anew each epoch, and of every batch the first process gets the first rows, and so on: batch i
    holds the same rows in the same order, however many processes there are, and no row twice within an epoch. The state
    is a number, valid whatever the number of processes or workers.
    """

    def __init__(
        self,
        rows: Rows,
        report: DataReport,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        workers: int = 0,
    ):
        import grain

        if batch_size % process_count:
            raise ValueError(f"batch_size={batch_size} must be divisible by the {process_count} processes")
        self.report = report
        self._data = rows.fingerprint()
        self._workers = workers
        order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
        share = batch_size // process_count
        own = slice(process_index * share, (process_index + 1) * share)
        batches = order.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
        self._batches = batches.map(lambda batch: rows.batch(batch[own]))
        self._next_index = 0
        self._iterator: Any = None  # grain's, from the next batch on

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._next_index += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """JSON-ready: how many batches have been drawn, and of which rows."""
        return {"next_index": self._next_index, "data": self._data}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batches that had been drawn when `get_state` gave this state.

        Raises:
          DataError: it is of other rows.
        """
        if state["data"] != self._data:
            raise DataError(
                "the training rows are not those this run began with: give config.data.path its first value, or a "
                "fresh --workdir"
            )
        self.close()
        self._next_index = int(state["next_index"])

    def close(self) -> None:
        """Ends the threads or processes that read ahead; the next batch, if one is asked for, starts them anew."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> Any:
        import grain

        batches = self._batches[self._next_index :]
        if not self._workers:
            return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
        _parse_absl_flags()
        return iter(batches.to_iter_dataset().mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers)))


def train_iterator(
    config: DataConfig,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Endless batches of the training split, for this process.

    Args:
      batch_size: rows of a step over all processes; each gets batch_size / process_count of them.

    Raises:
      DataError: see `encode_split`.
      ValueError: the batch cannot be divided.
    """
    rows, report = encode_split(config, tokenizer, "train")
    return TrainIterator(rows, report, batch_size, seed, process_index, process_count, config.workers)


def valid_batches(
    rows: Rows, batch_size: int, limit: int | None = None, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """The rows in order, in full batches: the last one is filled up from the first rows. Ends after one pass.

    Args:
      batch_size: over all processes, as in `train_iterator`.
      limit: at most so many batches.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} must be divisible by the {process_count} processes")
    starts = range(0, len(rows), batch_size)
    share = batch_size // process_count
    for start in itertools.islice(starts, limit):
        first = start + process_index * share
        yield rows.batch(np.arange(first, first + share) % len(rows))


def _parse_absl_flags() -> None:
    """grain's workers read absl flags, which outside an absl app (a notebook, a test) nobody has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
