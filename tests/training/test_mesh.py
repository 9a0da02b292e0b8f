"""A training step over every axis of the mesh gives what one device gives."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from dimba_kernels.testing import relative_error

from dimba_jax.config import MeshConfig
from dimba_jax.parallel import make_mesh, placement, shard_batch, split_kernels
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.step import make_train_step

STEPS = 3
MODEL = {
    "pattern": ("attention", "mamba2", "mamba"),
    "layers": 3,
    "d_model": 20,  # which eight devices cannot share evenly, and four can
    "head_dim": 4,
    "state_dim": 4,
    "groups": 2,
    "modulation": "adaln_zero",
}
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=1, tensor=2),
    "sequence": MeshConfig(data=1, sequence=4),
    "data and fsdp": MeshConfig(data=2, fsdp=4),
    "fsdp and tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "fsdp and sequence": MeshConfig(data=1, fsdp=2, sequence=2),
    "all": MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
}


@pytest.fixture(scope="module")
def alone():
    """The parts of a run, a batch whose length all meshes divide, and what one device makes of them."""
    return {}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_changes_nothing(name, alone, configs, batches, parts, base_key):
    config = configs(
        model=MODEL,
        data={"target_length": 4},
        # Adam divides by the root of the second moment: rounding of gradients near zero is not to be enlarged by it
        optimizer={"learning_rate": 1e-3, "epsilon": 1e-3},
    )
    tiny = parts(config)
    batch = {key: value[:, :8] for key, value in batches().items()}
    if not alone:
        state, losses = jax.tree.map(jax.numpy.copy, tiny.state), []
        for _ in range(STEPS):
            state, report = tiny.step(state, batch, base_key)
            losses.append(float(report.loss))
        alone.update(state=jax.device_get(state), losses=losses)
    mesh_config = MESHES[name]
    count = int(np.prod([getattr(mesh_config, axis.name) for axis in dataclasses.fields(mesh_config)]))
    mesh = make_mesh(mesh_config, jax.devices()[:count])
    where = placement(mesh, tiny.state)
    step = make_train_step(tiny.graphdef, make_optimizer(config.optimizer, config.training.steps), config, where)
    state, losses = jax.device_put(jax.device_get(tiny.state), where), []  # a copy: a step donates its argument
    for _ in range(STEPS):
        with split_kernels(mesh):
            state, report = step(state, shard_batch(mesh, batch), base_key)
        losses.append(float(report.loss))
    assert step._cache_size() == 1  # the state comes back as it went in
    split = mesh_config.fsdp * mesh_config.tensor > 1
    for tree in (state.params, state.ema, state.opt_state):  # the optimizer's moments too
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree)) == split
    assert losses == pytest.approx(alone["losses"], rel=1e-5)
    found = jax.tree.leaves_with_path(jax.device_get((state.params, state.ema)))
    wanted = jax.tree.leaves((alone["state"].params, alone["state"].ema))
    errors = {
        jax.tree_util.keystr(path): relative_error(leaf, other)
        for (path, leaf), other in zip(found, wanted, strict=True)
    }
    assert not {path: error for path, error in errors.items() if not error < 1e-5}
