"""Whole runs: what they leave behind, stopping and going on, and how they fail."""

import json
import signal

import jax
import numpy as np
import pytest

from dimba_jax import parallel
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import ConfigError, from_config_dict
from dimba_jax.training.loop import train
from dimba_jax.training.record import MAY_CHANGE
from dimba_jax.training.watch import Watch

TIMINGS = {"tokens_per_s", "pairs_per_s"}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make_mesh = parallel.make_mesh
    monkeypatch.setattr(parallel, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


@pytest.fixture
def run_config(tmp_path):
    """A run of 12 steps on a few lines of text, some figures due in the middle of an interruption."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 30), ("valid", 5)):
        lines = [json.dumps({"src": f"q{i % 9}", "trg": f"{i % 9}a"}) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    def make(**changes):
        groups = {
            "data": {"path": str(folder), "source_length": 4, "target_length": 4},
            "tokenizer": {"kind": "bytes"},
            "model": {"embedding_dim": 4, "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8},
            "process": {"timesteps": 10, "timestep_sampling": "importance", "schedule": "learned"},
            "optimizer": {"warmup_steps": 2},
            "training": {
                "steps": 12, "batch_size": 4, "log_every": 4, "checkpoint_every": 5, "valid_every": 9,
                "valid_batches": 2,
            },
            "sampling": {"steps": 2, "batch_size": 4},
        }  # fmt: skip
        return from_config_dict({name: values | changes.get(name, {}) for name, values in groups.items()})

    return make


def trace(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def interrupt_at(monkeypatch, step, number):
    add = Watch.add

    def stop(self, now, *rest):
        add(self, now, *rest)
        if now == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Watch, "add", stop)


def test_a_resumed_run_equals_an_unbroken_one(run_config, tmp_path, monkeypatch):
    config = run_config()
    whole = train(config, tmp_path / "whole", command=["make", "it"])
    assert whole.interrupted is None

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, signal.SIGTERM)  # between two log lines
        assert train(config, tmp_path / "broken").interrupted == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert Checkpoints(tmp_path / "broken").latest_step() == 6
    # lines that were logged after the last checkpoint, as a crash leaves them, do not stay
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    resumed = train(config, tmp_path / "broken")

    assert trace(tmp_path / "broken") == trace(tmp_path / "whole")
    for one, other in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(one, other)

    steps = [line["step"] for line in trace(tmp_path / "whole")]
    assert steps == [4, 8, 9, 12, 12]
    assert {"loss", "mse", "ce", "prior", "grad_norm", "embedding_rms", "accuracy", "learning_rate"} <= set(
        trace(tmp_path / "whole")[0]
    )
    assert "valid_loss" in trace(tmp_path / "whole")[2]
    assert sorted(p.name for p in (tmp_path / "whole" / "checkpoints").iterdir()) == ["10", "12"]
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000
    events = b"".join(p.read_bytes() for p in (tmp_path / "whole" / "tensorboard").iterdir())
    assert b"q0" in events and b"embedding_rms" in events
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["starts"][0]["command"] == ["make", "it"] and record["starts"][0]["versions"]["jax"]
    record = json.loads((tmp_path / "broken" / "run.json").read_text())
    assert [start["from_step"] for start in record["starts"]] == [0, 6]


def test_a_workdir_of_another_run_is_refused(run_config, tmp_path, capsys):
    short = {"steps": 2, "checkpoint_every": 1}
    done = train(run_config(training=short), tmp_path / "run")
    with pytest.raises(ConfigError) as error:
        train(run_config(training=short, model={"d_model": 16}, process={"timesteps": 12}), tmp_path / "run")
    assert "config.model.d_model: 8 in the checkpoint, 16 now" in str(error.value)
    assert "config.process.timesteps: 10 in the checkpoint, 12 now" in str(error.value)
    assert "new workdir" in str(error.value)
    assert f"What may change when a run goes on: {', '.join(MAY_CHANGE)}" in str(error.value)
    assert {"training.steps", "data.workers", "training.max_skipped_steps"} <= set(MAY_CHANGE)
    assert {"data.source_length", "model", "optimizer", "training.batch_size", "seed"}.isdisjoint(MAY_CHANGE)
    with pytest.raises(ConfigError, match=r"config.data.target_length: 4 in the checkpoint, 5 now"):
        train(run_config(training=short, data={"target_length": 5}), tmp_path / "run")

    capsys.readouterr()
    again = train(run_config(training=short | {"log_every": 1}, sampling={"steps": 3}), tmp_path / "run")
    assert "nothing to train" in capsys.readouterr().err
    assert int(again.state.step) == int(done.state.step) == 2
    assert int(train(run_config(training={"steps": 3}), tmp_path / "run").state.step) == 3


def test_a_batch_that_does_not_divide_is_refused(run_config, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "batch_ways", lambda mesh: 3)
    with pytest.raises(ConfigError, match=r"config.training.batch_size=4 is not divisible by the 3 devices"):
        train(run_config(), tmp_path / "run")
