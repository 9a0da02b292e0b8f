"""Devices: the mesh, and what is placed where on it.

Every array has logical axes, and RULES says over which axes of the mesh each of those is split. Batches are split
over `data` and `fsdp`, positions over `sequence`, heads and channels over `tensor`; the large parameters, their
averages and the optimizer's moments over `fsdp` and `tensor`. XLA's partitioner does the rest; kernels, which it cannot
split, run in a `shard_map` (`split_kernels`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import dimba_kernels
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dimba_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor", "sequence")

# Over which axes of the mesh a logical axis of an array is split; () is not at all.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    "heads": ("tensor",),  # and channels, inside the kernels
    "model": ("fsdp",),
    "inner": ("tensor",),  # of a mixer or an MLP
    "vocabulary": ("tensor",),
    "condition": (),
}

# The logical axes of parameters, by the last names of their path; they are the last axes of the array, behind that of
# the layers. What is not named here is small, and every device has all of it.
PARAMETERS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("in_proj", "kernel"): ("model", "inner"),
    ("out_proj", "kernel"): ("inner", "model"),
    ("modulation", "kernel"): ("condition", "model"),
    ("head", "kernel"): ("model", "vocabulary"),
    ("table",): ("vocabulary", "model"),
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices (or those given); the axis set to -1 takes what the others leave.

    Raises:
      ConfigError: more than one -1, an axis of 0 or less, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in AXES}
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise ConfigError(f"config.mesh ({shown}): sizes are positive, and one at most may be -1")
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        rest = len(devices) // known
        sizes = {axis: rest if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(f"config.mesh ({shown}) does not fit the {len(devices)} devices found: {devices[0].platform}")
    # 8 x 32 over a torus of 16 x 16: an axis of the mesh may take a part of one of the torus, which make_mesh refuses
    laid_out = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sharding(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    """The placement of an array whose leading axes have these logical names; None and what is behind are not split."""
    return NamedSharding(mesh, PartitionSpec(*(RULES[name] or None if name else None for name in logical_axes)))


def replicated(mesh: Mesh) -> NamedSharding:
    return sharding(mesh)


def placement(mesh: Mesh, state: PyTree) -> PyTree:
    """Where the leaves of a training state, of parameters or of anything that has their paths lie: a sharding each.

    An axis whose length the mesh does not divide is split into the most parts that divide it, each on several devices:
    1,920 over fsdp=256 are 128 parts.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        for last, axes in PARAMETERS.items():
            if names[-len(last) :] == last:
                return _split_evenly(mesh, leaf.shape, axes)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def _split_evenly(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str, ...]) -> NamedSharding:
    """The placement of an array whose last axes have these logical names."""
    first = len(shape) - len(axes)
    spec: list[tuple[str, ...] | None] = [None] * first
    parts = dict(mesh.shape)
    for axis, length in zip(axes, shape[first:], strict=True):
        split = []
        for name in RULES[axis]:
            ways = math.gcd(length, mesh.shape[name])
            if ways == 1 < mesh.shape[name]:
                continue
            length, parts[name] = length // ways, ways
            split.append(name)
        spec.append(tuple(split) or None)
    return NamedSharding(_in_parts(mesh, parts), PartitionSpec(*spec))


def _in_parts(mesh: Mesh, parts: Mapping[str, int]) -> Mesh:
    """The same devices in the same order, an axis that has fewer parts than devices being two: parts and copies."""
    if all(parts[axis] == size for axis, size in mesh.shape.items()):
        return mesh
    axes = {}
    for axis, size in mesh.shape.items():
        axes |= {axis: parts[axis]} | ({} if parts[axis] == size else {f"{axis}_copies": size // parts[axis]})
    return Mesh(mesh.devices.reshape(tuple(axes.values())), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def batch_ways(mesh: Mesh) -> int:
    """Over how many devices a batch is split."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def check_length(mesh: Mesh, length: int) -> None:
    """Raises ConfigError if rows of so many positions cannot be split evenly over the mesh."""
    ways = mesh.shape["sequence"]
    if length % ways:
        raise ConfigError(
            f"config.data: rows of source_length + target_length = {length} positions are not divisible by "
            f"config.mesh.sequence={ways}: use a multiple of {ways}, or another mesh"
        )


def check_batch(mesh: Mesh, rows: int, name: str) -> None:
    """Raises ConfigError if `rows` (the setting `name`) cannot be split evenly over the mesh and its processes."""
    ways = batch_ways(mesh)
    if rows % ways or rows % jax.process_count():
        raise ConfigError(
            f"{name}={rows} is not divisible by the {ways} devices it is split over "
            f"({' x '.join(f'{axis}={mesh.shape[axis]}' for axis in RULES['batch'])}): "
            f"use a multiple of {math.lcm(ways, jax.process_count())}"
        )


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Places this process's rows of a batch on its devices: (rows, positions), both split."""
    where = sharding(mesh, "batch", "length")
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), where)
    return {name: jax.make_array_from_process_local_data(where, value) for name, value in batch.items()}


def split_kernels(mesh: Mesh) -> AbstractContextManager[None]:
    """Inside, kernels traced take their devices' rows, heads and positions: XLA cannot split a kernel's call."""
    sequence = "sequence" if mesh.shape["sequence"] > 1 else None
    return dimba_kernels.sharding(mesh, batch=RULES["batch"], heads=RULES["heads"], sequence=sequence)


def unsplit_kernels() -> AbstractContextManager[None]:
    """Within `split_kernels`, a program of this process's first device alone."""
    return dimba_kernels.sharding(Mesh(np.array(jax.local_devices()[:1]), ("alone",)))


def on_first_device(mesh: Mesh, tree: PyTree) -> PyTree:
    """Whole arrays on this process's first device. All processes gather them, and so all of them must call this."""
    whole = jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def gather_json(value: Any) -> list[Any]:
    """The JSON-able values of all processes, in their order, on every process."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(text.size)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]
