"""The mesh, what lies where on it, and a training step that a split batch does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from dimba_jax import parallel
from dimba_jax.config import ConfigError, MeshConfig

FOUR = jax.devices()[:4]


def test_the_rest_of_the_devices_goes_to_the_open_axis():
    mesh = parallel.make_mesh(MeshConfig(), FOUR)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=-1), FOUR)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}
    assert parallel.batch_ways(mesh) == 4


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=3), MeshConfig(data=-1, fsdp=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(data=0), MeshConfig(8)],
)
def test_a_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(ConfigError, match=rf"config.mesh \(data={config.data}, fsdp={config.fsdp}"):
        parallel.make_mesh(config, FOUR)


def test_a_batch_must_divide():
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=2), FOUR)
    parallel.check_batch(mesh, 12, "config.training.batch_size")
    with pytest.raises(
        ConfigError, match="config.training.batch_size=10 .* 4 devices .*data=2 x fsdp=2.* multiple of 4"
    ):
        parallel.check_batch(mesh, 10, "config.training.batch_size")


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=2), FOUR)
    rows = np.arange(8, dtype=np.int32).reshape(8, 1)
    placed = parallel.shard_batch(mesh, {"tokens": rows})["tokens"]
    assert placed.sharding.spec == PartitionSpec(("data", "fsdp"), "sequence")
    assert [shard.data.tolist() for shard in placed.addressable_shards] == [[[i], [i + 1]] for i in range(0, 8, 2)]
    assert jax.device_put(jnp.ones(3), parallel.replicated(mesh)).sharding.is_fully_replicated
    assert parallel.sharding(mesh, "batch", None).spec == PartitionSpec(("data", "fsdp"), None)


def test_large_parameters_are_split_and_what_the_mesh_does_not_divide_is_not():
    mesh = parallel.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), FOUR)
    shapes = {
        "groups": {"in_proj": {"kernel": (3, 8, 6)}, "norm": {"scale": (3, 8)}},
        "rest": [{"out_proj": {"kernel": (6, 8)}, "modulation": {"kernel": (5, 8), "bias": (8,)}}],
        "head": {"kernel": (7, 4)},
        "table": (12, 8),
    }
    tree = jax.tree.map(lambda shape: jnp.zeros(shape), shapes, is_leaf=lambda node: isinstance(node, tuple))
    found = jax.tree.map(lambda at: at.spec, parallel.placement(mesh, tree))
    assert found == {
        "groups": {"in_proj": {"kernel": PartitionSpec(None, "fsdp", "tensor")}, "norm": {"scale": PartitionSpec()}},
        "rest": [
            {
                "out_proj": {"kernel": PartitionSpec("tensor", "fsdp")},
                "modulation": {"kernel": PartitionSpec(None, "fsdp"), "bias": PartitionSpec()},
            }
        ],
        "head": {"kernel": PartitionSpec(None, "tensor")},  # fsdp=2 does not divide 7
        "table": PartitionSpec("tensor", "fsdp"),
    }


def test_an_axis_that_the_mesh_does_not_divide_is_split_into_the_most_parts_that_do():
    mesh = parallel.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices())
    tree = {
        "table": jnp.arange(18.0).reshape(3, 6),
        "in_proj": {"kernel": jnp.arange(140.0).reshape(2, 10, 7)},
        "out_proj": {"kernel": jnp.ones((4, 8))},
    }
    where = parallel.placement(mesh, tree)
    found = jax.tree.map(lambda at, leaf: at.shard_shape(leaf.shape), where, tree)
    assert found == {"table": (3, 3), "in_proj": {"kernel": (2, 5, 7)}, "out_proj": {"kernel": (2, 2)}}
    assert all(at.mesh.devices.ravel().tolist() == mesh.devices.ravel().tolist() for at in jax.tree.leaves(where))
    placed = jax.device_put(tree, where)
    again = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), out_shardings=where)(placed)
    np.testing.assert_array_equal(again["in_proj"]["kernel"], 2 * tree["in_proj"]["kernel"])


def test_positions_must_divide():
    mesh = parallel.make_mesh(MeshConfig(data=1, sequence=4), FOUR)
    parallel.check_length(mesh, 8)
    with pytest.raises(ConfigError, match="= 10 positions are not divisible by config.mesh.sequence=4"):
        parallel.check_length(mesh, 10)


def test_one_process_gathers_its_own_value():
    assert parallel.gather_json({"next_index": 3}) == [{"next_index": 3}]
