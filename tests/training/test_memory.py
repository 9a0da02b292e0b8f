"""Long runs take no more memory than short ones."""

import gc
import os
from pathlib import Path

import jax
import pytest

from dimba_jax import parallel
from dimba_jax.config import DataConfig, from_config_dict
from dimba_jax.data.examples import Example
from dimba_jax.data.pipeline import TrainIterator
from dimba_jax.data.rows import encode_examples
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.training.loop import train
from dimba_jax.training.watch import Watch

LATE = 10_000
AT = range(2_000, LATE + 1, 2_000)  # compiling leaves memory that is given back later: the first is not the least


def resident():
    """Megabytes of this process's memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_ten_thousand_batches_take_no_more_memory():
    config = DataConfig(source_length=32, target_length=32)
    rows, report = encode_examples(
        [Example(f"s{i}", (f"t{i}",), i) for i in range(500)], config, ByteTokenizer(), "train"
    )
    iterator = TrainIterator(rows, report, batch_size=64, seed=0)
    seen = {}
    for number in range(1, LATE + 1):
        next(iterator)
        if number in AT:
            seen[number] = resident()
    iterator.close()
    print("MB after batches:", seen)
    assert seen[LATE] - min(seen.values()) < 5


@pytest.mark.slow
def test_ten_thousand_steps_take_no_more_memory(tmp_path, write_pairs, monkeypatch):
    make_mesh, add, seen = parallel.make_mesh, Watch.add, {}
    monkeypatch.setattr(parallel, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))

    def noting(self, step, *rest):
        add(self, step, *rest)
        if step in AT:
            seen[step] = resident()

    monkeypatch.setattr(Watch, "add", noting)
    write_pairs(tmp_path, 50)
    config = from_config_dict(
        {
            "data": {"path": str(tmp_path), "source_length": 4, "target_length": 4},
            "tokenizer": {"kind": "bytes"},
            "model": {"embedding_dim": 4, "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8},
            "training": {
                "steps": LATE + 10, "batch_size": 4, "log_every": 100, "checkpoint_every": 500, "valid_batches": 1,
            },
            "sampling": {"steps": 2, "batch_size": 4},
        }
    )  # fmt: skip
    train(config, tmp_path / "run")
    print("MB after steps:", seen)
    assert seen[LATE] - min(seen.values()) < 20
