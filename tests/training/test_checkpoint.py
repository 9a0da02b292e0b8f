"""Checkpoints: what goes in comes out, and what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax import parallel
from dimba_jax.checkpoint import CheckpointError, Checkpoints
from dimba_jax.config import MeshConfig
from dimba_jax.leaves import listed


class Layer(nnx.Module):
    def __init__(self, scale: float):
        self.inner = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.list = nnx.List([nnx.Param(jnp.full(2, scale))])


def state(scale=1.0):
    params = nnx.to_pure_dict(nnx.state(Layer(scale)))
    return {
        "params": params,
        "ema": jax.tree.map(lambda leaf: leaf + 1, params),
        "process": (),
        "training": {"step": jnp.int32(4), "moments": (params, jnp.zeros(2, bool))},
    }


def save(checkpoints, step, **changes):
    values = {
        "data_state": [{"next_index": step}],
        "config": {"name": "é", "pattern": ("a", "b")},
        "tokenizer": {"k": 1},
    }
    checkpoints.save(step, state(float(step)), **(values | changes))


def test_round_trip(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        save(checkpoints, 4)
        save(checkpoints, 4)  # a run that stops right after a checkpoint
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 4
        assert checkpoints.read_config() == {"name": "é", "pattern": ["a", "b"]}
        assert checkpoints.read_tokenizer(4) == {"k": 1}
        assert checkpoints.read_data_state() == [{"next_index": 4}]
        found = checkpoints.restore(None, jax.eval_shape(state))
        assert jax.tree.structure(found) == jax.tree.structure(state())
        jax.tree.map(np.testing.assert_array_equal, found, state(4.0))


def test_parameters_are_read_alone_in_either_form(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 4)
        graph, abstract = nnx.split(nnx.eval_shape(lambda: Layer(0.0)))
        averaged = nnx.merge(graph, checkpoints.read_params(abstract=abstract))
        np.testing.assert_array_equal(averaged.list[0][...], [5.0, 5.0])
        raw = checkpoints.read_params(4, ema=False, abstract=nnx.to_pure_dict(abstract))
        np.testing.assert_array_equal(raw["list"][0], [4.0, 4.0])
        assert raw["inner"]["kernel"].sharding.device_set == {jax.devices()[0]}


def test_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        with pytest.raises(FileNotFoundError, match="has no step 1; it has 2, 3"):
            checkpoints.read_config(1)


def test_a_folder_without_checkpoint_says_what_to_run(tmp_path):
    checkpoints = Checkpoints(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: train one with python -m dimba_jax.train"):
        checkpoints.read_params(abstract={})
    assert not (tmp_path / "nothing").exists()


def test_another_model_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 4)
        other = jax.eval_shape(state)["params"]
        other["inner"]["kernel"] = jax.ShapeDtypeStruct((2, 7), jnp.float32)
        other["extra"] = jax.ShapeDtypeStruct((), jnp.float32)
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(4, {"params": other})
    assert "is of another model (2 arrays differ)" in str(error.value)
    assert "inner/kernel: float32[2,3] on disk, float32[2,7] expected" in str(error.value)
    assert "extra: nothing on disk, float32[] expected" in str(error.value)


def test_of_many_differences_the_first_are_shown():
    assert listed(["a", "b"]) == "a\n  b"
    assert listed(list("abcdefg")) == "a\n  b\n  c\n  d\n  e\n  … and 2 more"


def test_a_save_is_of_the_moment(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = step({"params": jnp.zeros((500, 500))})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, data_state=0, config={}, tokenizer={})
        for _ in range(20):
            tree = step(tree)
        checkpoints.wait()
        found = checkpoints.restore(1, jax.eval_shape(lambda: tree))
    np.testing.assert_array_equal(found["params"], 1.0)


def test_a_part_without_arrays_is_restored_without_a_word(tmp_path, caplog):
    """A process that learns nothing has no leaf, and asking orbax for nothing makes it warn of all there is."""
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    caplog.clear()
    with Checkpoints(tmp_path) as checkpoints:  # another one: the first knows what it wrote
        assert checkpoints.restore(1, {"process": ()}) == {"process": ()}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("written", [MeshConfig(1), MeshConfig(1, fsdp=8), MeshConfig(1, fsdp=2, tensor=4)])
@pytest.mark.parametrize("read", [MeshConfig(1), MeshConfig(8), MeshConfig(1, fsdp=4), MeshConfig(2, tensor=4)])
def test_what_one_mesh_wrote_another_reads(written, read, tmp_path):
    def params():
        return {"in_proj": {"kernel": jnp.arange(128.0).reshape(8, 16)}, "table": jnp.arange(88.0).reshape(11, 8)}

    def mesh_of(config):
        return parallel.make_mesh(config, jax.devices()[: config.data * config.fsdp * config.tensor])

    def placed(config):
        abstract = jax.eval_shape(params)
        where = parallel.placement(mesh_of(config), abstract)
        return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), abstract, where)

    parts = {"params": jax.device_put(params(), parallel.placement(mesh_of(written), params()))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, data_state=None, config={}, tokenizer={})
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(1, {"params": placed(read)})["params"]
        alone = checkpoints.restore(1, {"params": jax.eval_shape(params)})["params"]  # as sampling does
    jax.tree.map(np.testing.assert_array_equal, found, params())
    jax.tree.map(np.testing.assert_array_equal, alone, params())
    assert found["in_proj"]["kernel"].sharding.mesh.shape["fsdp"] == read.fsdp
    shard = found["in_proj"]["kernel"].addressable_shards[0].data
    assert shard.shape == (8 // read.fsdp, 16 // read.tensor)
    assert all(leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(alone))
