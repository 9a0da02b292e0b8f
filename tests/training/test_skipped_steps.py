"""Steps whose loss or gradient is not finite change nothing, are counted, and end the run if too many come in a row."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax import parallel
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import MeshConfig, from_config_dict
from dimba_jax.parallel import make_mesh, placement, shard_batch, split_kernels
from dimba_jax.training import step as step_module
from dimba_jax.training.figures import Usual
from dimba_jax.training.loop import train
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.step import make_train_step
from dimba_jax.training.watch import INCIDENTS_FILE, TrainingDiverged, Watch

POISON = ord("~")
LEARNED = {"process": {"timestep_sampling": "importance", "schedule": "learned"}}


def poison(monkeypatch, kind, token):
    """A row that holds the token spoils the loss, or the gradient of a loss that is fine, or is hard to learn."""
    batch_loss = step_module.batch_loss

    def poisoned(params, graphdef, process, batch, draws, total, config, teacher=None):
        objective, figures = batch_loss(params, graphdef, process, batch, draws, total, config, teacher)
        rows = jnp.any(batch["tokens"] == token, axis=1)
        bad = jnp.any(rows)
        if kind == "gradient":
            zero = 0.0 * jnp.sum(jax.tree.leaves(params)[0])
            return objective + jnp.sqrt(jnp.where(bad, zero, 1.0)), figures
        more = {"loss": jnp.nan, "spike": 1000.0}[kind]
        losses = jnp.where(rows, figures.loss + more, figures.loss)
        return objective + jnp.where(bad, more, 0.0), figures._replace_loss(losses)

    monkeypatch.setattr(step_module, "batch_loss", poisoned)


@pytest.fixture(autouse=True)
def replaceable(monkeypatch):
    import dataclasses

    from dimba_jax.training.figures import RowFigures

    monkeypatch.setattr(
        RowFigures, "_replace_loss", lambda self, loss: dataclasses.replace(self, loss=loss), raising=False
    )


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize(
    "groups", [{}, {"training": {"accumulate": 4}}, LEARNED], ids=["plain", "accumulate", "learned"]
)
def test_a_step_that_is_not_finite_changes_nothing(kind, groups, configs, batches, parts, base_key, monkeypatch):
    config = configs(**groups)
    tiny = parts(config)
    taken, fine = tiny.run(2, base_key)
    poison(monkeypatch, kind, token=10)
    step = make_train_step(tiny.graphdef, make_optimizer(config.optimizer, config.training.steps), config)
    calm, wild = batches(), batches()
    calm["tokens"] = np.where(calm["tokens"] == 10, 9, calm["tokens"])
    wild["tokens"] = calm["tokens"].copy()
    wild["tokens"][3, 1] = 10

    def move(state, batch):
        return step(jax.tree.map(jnp.copy, state), batch, base_key)

    skipped, report = move(taken, wild)
    assert int(skipped.step) == 3 and int(skipped.skipped) == int(skipped.skipped_in_a_row) == 1
    for name in ("params", "ema", "opt_state", "process", "timesteps", "totals"):
        jax.tree.map(np.testing.assert_array_equal, getattr(skipped, name), getattr(taken, name))
    assert int(report.skipped_in_a_row) == 1
    if kind == "loss":
        assert np.flatnonzero(~np.isfinite(report.row_loss)).tolist() == [3]
    else:
        assert np.isfinite(report.loss) and not np.isfinite(report.grad_norm)
    twice, _ = move(skipped, wild)
    assert int(twice.skipped_in_a_row) == 2
    after, report = move(twice, calm)
    assert (int(after.skipped), int(after.skipped_in_a_row), int(report.skipped_in_a_row)) == (2, 0, 0)
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(taken.params), strict=True)
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((after.params, after.ema, after.opt_state)))


def test_a_mesh_skips_together(configs, batches, parts, base_key, monkeypatch):
    config = configs()
    tiny = parts(config)
    poison(monkeypatch, "loss", token=10)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    where = placement(mesh, tiny.state)
    step = make_train_step(tiny.graphdef, make_optimizer(config.optimizer, 200), config, where)
    batch = batches()
    batch["tokens"][:, 0] = 10
    with split_kernels(mesh):
        before = jax.device_get(tiny.state)  # a copy: a step donates its argument
        state, report = step(jax.device_put(before, where), shard_batch(mesh, batch), base_key)
    assert report.row_loss.sharding.is_fully_replicated and not np.isfinite(report.row_loss).any()
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))


@pytest.fixture
def run_config(tmp_path, monkeypatch):
    """A run of 40 steps, five rows a step, on 15 rows of text of which number 7 holds the poison."""
    make = parallel.make_mesh
    monkeypatch.setattr(parallel, "make_mesh", lambda config: make(config, jax.devices()[:1]))
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid"):
        lines = [json.dumps({"src": f"{'~' if i == 7 else 'q'}{i % 9}", "trg": f"{i % 9}a"}) for i in range(15)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    def make_config(**changes):
        groups = {
            "data": {"path": str(folder), "source_length": 4, "target_length": 4},
            "tokenizer": {"kind": "bytes"},
            "model": {"embedding_dim": 4, "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8},
            "process": {"timesteps": 10},
            "optimizer": {"warmup_steps": 2},
            "training": {"steps": 40, "batch_size": 5, "log_every": 10, "checkpoint_every": 100, "valid_batches": 1},
            "sampling": {"steps": 2, "batch_size": 4},
        }  # fmt: skip
        return from_config_dict({name: values | changes.get(name, {}) for name, values in groups.items()})

    return make_config


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def poison_token(config):
    from dimba_jax.data.tokenizers import ByteTokenizer

    return ByteTokenizer().encode("~")[0]


def test_a_run_goes_on_past_a_bad_row_and_names_it(run_config, tmp_path, monkeypatch, capsys):
    config = run_config()
    poison(monkeypatch, "loss", poison_token(config))
    whole = train(config, tmp_path / "whole")
    incidents = lines_of(tmp_path / "whole" / INCIDENTS_FILE)
    assert len(incidents) == 13 == int(whole.state.skipped)  # once in each epoch of three steps
    assert all(line["kind"] == "skipped" and line["bad_rows"] == [7] and 7 in line["rows"] for line in incidents)
    assert all(len(line["rows"]) == 5 and line["loss"] is None for line in incidents)
    records = lines_of(tmp_path / "whole" / "metrics.jsonl")
    counts = [line["skipped_steps"] for line in records if "skipped_steps" in line]
    assert counts[-1] == 13 and counts == sorted(counts) and all(np.isfinite(line["loss"]) for line in records[:1])
    said = capsys.readouterr().err
    assert "skipped: the loss of rows 7 of the training split is not finite" in said

    add = Watch.add
    with monkeypatch.context() as patch:

        def stop(self, step, *rest):
            add(self, step, *rest)
            if step == incidents[3]["step"]:  # saved with a streak of one
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(Watch, "add", stop)
        train(config, tmp_path / "broken")
    resumed = train(config, tmp_path / "broken")
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    assert lines_of(tmp_path / "broken" / INCIDENTS_FILE) == incidents


def test_too_many_in_a_row_end_the_run(run_config, tmp_path):
    config = run_config(
        training={"checkpoint_every": 1, "max_skipped_steps": 3},
        optimizer={"learning_rate": 1e30, "clip_norm": 0.0, "warmup_steps": 0},
    )
    with pytest.raises(TrainingDiverged) as error:
        train(config, tmp_path / "run")
    message = str(error.value)
    assert "steps 2 to 4: " in message and "max_skipped_steps=3 in a row" in message
    assert INCIDENTS_FILE in message and "the last checkpoint is of step 1" in message and "\n" not in message
    incidents = lines_of(tmp_path / "run" / INCIDENTS_FILE)
    assert [line["step"] for line in incidents] == [2, 3, 4] and [line["in_a_row"] for line in incidents] == [1, 2, 3]
    assert all(len(set(line["rows"])) == 5 for line in incidents)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 1  # none of the steps that were skipped


def test_parameters_that_are_not_finite_are_not_saved(run_config, tmp_path):
    config = run_config(
        training={"checkpoint_every": 1}, optimizer={"learning_rate": 1e39, "clip_norm": 0.0, "warmup_steps": 0}
    )
    with pytest.raises(TrainingDiverged, match="step 1: a parameter is not finite.* nothing was saved"):
        train(config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run").latest_step() is None


def test_a_spike_is_written_with_its_rows(run_config, tmp_path, monkeypatch):
    config = run_config()
    poison(monkeypatch, "spike", poison_token(config))
    monkeypatch.setattr(Usual, "ENOUGH", 10)
    spikes = {}
    monkeypatch.setattr(
        Usual, "spike", lambda self, loss, spike=Usual.spike: spikes.setdefault(loss, spike(self, loss))
    )
    train(config, tmp_path / "run")
    lines = lines_of(tmp_path / "run" / INCIDENTS_FILE)
    assert len(lines) >= 5 and all(line["kind"] == "spike" and 7 in line["rows"] for line in lines)
    assert all(line["worst_rows"][0] == 7 for line in lines)
    assert all(line["loss"] > 1000 > 100 > line["usual_loss"] for line in lines)
    assert len(spikes) == 40 and len(lines) == sum(found is not None for found in spikes.values())


def test_what_is_usual_is_not_moved_by_outliers():
    rng = np.random.default_rng(0)
    usual = Usual()
    assert usual.spike(1e9) is None  # nothing is known yet
    assert all(usual.spike(float(loss)) is None for loss in 3.0 + 0.1 * rng.standard_normal(300))
    middle, spread = usual.spike(6.0)
    assert middle == pytest.approx(3.0, abs=0.05) and spread == pytest.approx(0.1, rel=0.3)
    assert all(usual.spike(6.0) is not None for _ in range(20))
    assert usual.spike(0.1) is None  # a loss that falls is none
    again = Usual(json.loads(json.dumps(list(usual.losses))))
    assert again.spike(6.0) == usual.spike(6.0)
    flat = Usual([1.0] * 50)
    assert flat.spike(1.05) is None and flat.spike(1.2) == (1.0, 0.0)
