"""Masked and next-token training: microbatches, devices, and a run that goes on where it stopped."""

import json

import jax
import numpy as np
import pytest

from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import ConfigError, MeshConfig, from_config_dict
from dimba_jax.parallel import make_mesh, replicated, shard_batch, split_kernels
from dimba_jax.training.loop import train
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.step import make_train_step

TOKENS = {"self_conditioning": False, "head": "untied", "mlp_ratio": 1.0}
KINDS = {
    "masked": {"process": {"kind": "masked", "schedule": "cosine", "condition_dropout": 0.3}},
    "blocks": {"process": {"kind": "masked", "schedule": "log_linear", "block_size": 5}},
    "autoregressive": {
        "process": {"kind": "autoregressive", "schedule": "log_linear", "loss_on_padding": False},
        "model": {"direction": "causal"},
    },
}  # fmt: skip


def groups_of(kind, **training):
    return {
        "process": KINDS[kind]["process"],
        "model": TOKENS | KINDS[kind].get("model", {}),
        "sampling": {"sampler": "ancestral", "steps": 2},
        "training": training,
        # a gradient near 0 would be blown up to a full step by the smallest epsilon, rounding and all
        "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-6},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_microbatches_and_devices_change_nothing(kind, configs, parts, batches, base_key):
    whole, losses = parts(configs(**groups_of(kind))).run(2, base_key)
    config = configs(**groups_of(kind, accumulate=2))
    tiny = parts(config)
    mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])
    step = make_train_step(tiny.graphdef, make_optimizer(config.optimizer, 200), config, replicated(mesh))
    state = jax.device_put(jax.tree.map(jax.numpy.copy, tiny.state), replicated(mesh))
    found = []
    for _ in range(2):
        with split_kernels(mesh):
            state, report = step(state, shard_batch(mesh, batches()), base_key)
        found.append(float(report.loss))
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert losses[0] != losses[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.params, state.params)


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_one_batch(kind, configs, parts, base_key):
    groups = groups_of(kind) | {"optimizer": {"learning_rate": 1e-2}}
    _, losses = parts(configs(**groups)).run(120, base_key)
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])


def a_search(tmp_path, steps):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 40)
    return from_config_dict(
        {
            "data": {"source": "text", "path": str(text), "source_length": 0, "target_length": 8, "normalize": "none"},
            "tokenizer": {"kind": "bytes"},
            "model": {"d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 4} | TOKENS,
            "process": {
                "kind": "masked", "schedule": "log_linear", "block_size": 4, "search_time_range": True,
                "time_conditioning": False,
            },
            "training": {
                "steps": steps, "batch_size": 8, "log_every": 2, "checkpoint_every": 2, "valid_every": 2,
                "valid_batches": 1,
            },
            "optimizer": {"schedule": "constant", "warmup_steps": 0},
            "sampling": {"sampler": "ancestral", "steps": 2, "batch_size": 4},
        }
    )  # fmt: skip


def test_a_checkpoint_holds_the_range_that_was_found(tmp_path):
    """The validation of a step comes before its checkpoint, so that going on draws from the range it found."""
    whole = train(a_search(tmp_path, 4), tmp_path / "whole").state
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["time_range/low"] for line in lines if "time_range/low" in line}
    assert found[2] > 0.002  # the search moved it, so that a checkpoint from before would show
    with Checkpoints(tmp_path / "whole") as checkpoints:
        stored = checkpoints.restore(2, {"process": whole.process})["process"]
    assert float(stored.time_range[0]) == pytest.approx(found[2])

    train(a_search(tmp_path, 2), tmp_path / "broken")
    resumed = train(a_search(tmp_path, 4), tmp_path / "broken").state
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


@pytest.mark.parametrize(
    ("process", "message"),
    [({"timestep_sampling": "importance"}, "importance"), ({"loss_on_padding": False}, "text's length")],
)
def test_what_would_be_biased_is_refused(process, message, configs):
    groups = groups_of("masked")
    groups["process"] = groups["process"] | process
    with pytest.raises(ConfigError, match=message):
        configs(**groups)
