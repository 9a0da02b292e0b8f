import contextlib
import json
import multiprocessing
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dimba_jax.config import DataConfig, SyntheticConfig
from dimba_jax.data.examples import DataError, Example
from dimba_jax.data.pipeline import TrainIterator, train_iterator, valid_batches
from dimba_jax.data.rows import encode_examples
from dimba_jax.data.tokenizers import ByteTokenizer

CONFIG = DataConfig(source_length=5, target_length=5)
COUNT = 23


@pytest.fixture(scope="module")
def encoded():
    return encode_examples([Example(f"s{i}", (f"t{i}",), i) for i in range(COUNT)], CONFIG, ByteTokenizer(), "train")


def rows_of(iterator, batches):
    return [next(iterator)["row"].tolist() for _ in range(batches)]


def test_epochs_are_permutations_that_differ(encoded):
    drawn = sum(rows_of(TrainIterator(*encoded, batch_size=4, seed=0), 23), [])
    epochs = [drawn[i * COUNT : (i + 1) * COUNT] for i in range(4)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_deterministic_in_the_seed(encoded):
    def draw(seed):
        return rows_of(TrainIterator(*encoded, batch_size=4, seed=seed), 6)

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(encoded, processes):
    whole = rows_of(TrainIterator(*encoded, batch_size=8, seed=5), 10)
    shares = [
        rows_of(TrainIterator(*encoded, batch_size=8, seed=5, process_index=i, process_count=processes), 10)
        for i in range(processes)
    ]
    for step, batch in enumerate(whole):
        assert all(len(share[step]) == 8 // processes for share in shares)
        assert batch == [row for share in shares for row in share[step]]  # in the same order too


def test_resuming_is_exact(encoded):
    unbroken = TrainIterator(*encoded, batch_size=4, seed=0)
    expected = [next(unbroken) for _ in range(20)]
    broken = TrainIterator(*encoded, batch_size=4, seed=0)
    rows_of(broken, 7)
    state = json.loads(json.dumps(broken.get_state()))
    rows_of(broken, 3)  # what is drawn after the state was taken does not matter
    resumed = TrainIterator(*encoded, batch_size=4, seed=0)
    resumed.set_state(state)
    broken.set_state(state)
    for iterator in (resumed, broken):
        for batch in expected[7:]:
            found = next(iterator)
            for name in batch:
                np.testing.assert_array_equal(found[name], batch[name])
    assert resumed.get_state()["next_index"] == 20


def test_resuming_on_other_rows_is_refused(encoded):
    examples = [Example(f"s{i}", (f"t{i}",), i) for i in reversed(range(COUNT))]
    others = encode_examples(examples, CONFIG, ByteTokenizer(), "train")
    with pytest.raises(DataError, match="not those this run began with"):
        TrainIterator(*others, batch_size=4, seed=0).set_state(TrainIterator(*encoded, 4, 0).get_state())


def test_workers_change_nothing(encoded):
    expected = rows_of(TrainIterator(*encoded, batch_size=4, seed=0), 9)
    plain = TrainIterator(*encoded, batch_size=4, seed=0)
    rows_of(plain, 2)
    iterator = TrainIterator(*encoded, batch_size=4, seed=0, workers=2)
    iterator.set_state(plain.get_state())
    assert rows_of(iterator, 5) == expected[2:7]
    plain.set_state(iterator.get_state())
    assert rows_of(plain, 2) == expected[7:]


@pytest.mark.parametrize(("first", "workers", "processes"), [(2, 0, 2), (0, 1, 2), (1, 2, 1)])
def test_resuming_is_exact_with_other_workers_and_processes(encoded, first, workers, processes):
    expected = rows_of(TrainIterator(*encoded, batch_size=4, seed=0), 12)
    with contextlib.closing(TrainIterator(*encoded, batch_size=4, seed=0, workers=first)) as begun:
        assert rows_of(begun, 5) == expected[:5]
        state = json.loads(json.dumps(begun.get_state()))
    shares = []
    for index in range(processes):
        resumed = TrainIterator(
            *encoded, batch_size=4, seed=0, process_index=index, process_count=processes, workers=workers
        )
        with contextlib.closing(resumed):
            resumed.set_state(state)
            shares.append(rows_of(resumed, 7))
            assert resumed.get_state()["next_index"] == 12
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == expected[5:]


def test_nothing_is_left_running(encoded):
    def alive():  # apart from what tests before this one have left, which may end in the meantime
        return {*threading.enumerate(), *multiprocessing.active_children()} - before

    before = {*threading.enumerate(), *multiprocessing.active_children()}
    for workers in (0, 1):
        iterator = TrainIterator(*encoded, batch_size=4, seed=0, workers=workers)
        rows_of(iterator, 3)
        assert alive()  # something reads ahead
        iterator.close()
        iterator.close()
        until = time.monotonic() + 30
        while alive() and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive()
    iterator = TrainIterator(*encoded, batch_size=4, seed=0)
    first = rows_of(iterator, 2)
    iterator.close()
    assert first + rows_of(iterator, 1) == rows_of(TrainIterator(*encoded, batch_size=4, seed=0), 3)  # it goes on


def test_a_batch_larger_than_the_data(encoded):
    (drawn,) = rows_of(TrainIterator(*encoded, batch_size=50, seed=0), 1)
    assert len(drawn) == 50 and set(drawn) == set(range(COUNT))


def test_batch_must_divide(encoded):
    with pytest.raises(ValueError, match="batch_size=9 must be divisible by the 2 processes"):
        TrainIterator(*encoded, batch_size=9, seed=0, process_count=2)
    with pytest.raises(ValueError, match="batch_size=9 must be divisible by the 2 processes"):
        next(valid_batches(encoded[0], 9, process_count=2))


def test_train_iterator_of_a_config():
    config = DataConfig(
        source="synthetic", synthetic=SyntheticConfig(pairs=500), source_length=64, target_length=70, normalize="none"
    )
    iterator = train_iterator(config, ByteTokenizer(), 16, 0)
    batch = next(iterator)
    assert batch["tokens"].shape == batch["target"].shape == batch["valid"].shape == (16, 134)
    assert ByteTokenizer().decode(batch["tokens"][0, :64].tolist()).endswith("?")
    assert iterator.report.rows == 450


def test_valid_batches_pass_once_and_fill_up(encoded):
    rows, _ = encoded
    found = [batch["row"].tolist() for batch in valid_batches(rows, 10)]
    assert found == [[*range(10)], [*range(10, 20)], [20, 21, 22, *range(7)]]
    assert len(list(valid_batches(rows, 10, limit=2))) == 2
    shares = [[batch["row"].tolist() for batch in valid_batches(rows, 10, None, i, 2)] for i in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == found


def test_importing_data_brings_neither_grain_nor_jax():
    code = (
        "import sys, dimba_jax.data.pipeline\n"
        "print([m for m in ('grain', 'jax', 'sentencepiece', 'datasets', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
