"""Devices: the mesh, what is placed where on it, and the start of a run over several processes.

Batches are split over `data` and `fsdp`; parameters, their averages and the optimizer's moments are
replicated, so `fsdp`, `tensor` and `sequence` name axes of the mesh but split no parameter.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import dimba_kernels
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dimba_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor", "sequence")

# Which mesh axes a logical axis of an array is split over; () is replicated.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": (),
    "parameter": (),
}

_CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_NUM_NODES", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def maybe_initialize_distributed() -> bool:
    """Joins the other processes of a cluster run, if the environment names one; call before any other JAX call.

    `jax.distributed.initialize` finds the coordinator itself on Slurm, Open MPI and Cloud TPU, or takes
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Returns whether there are several processes.
    """
    if jax.distributed.is_initialized():
        return True
    if not any(_names_several(name, os.environ.get(name, "")) for name in _CLUSTER_VARIABLES):
        return False
    processes, place = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    jax.distributed.initialize(
        num_processes=int(processes) if processes else None, process_id=int(place) if place else None
    )
    return True


def _names_several(name: str, value: str) -> bool:
    if name == "JAX_COORDINATOR_ADDRESS":
        return bool(value)
    if name == "TPU_WORKER_HOSTNAMES":
        return "," in value
    return value.isdigit() and int(value) > 1


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
    for axis in ("tensor", "sequence"):
        if sizes[axis] > 1:
            raise ConfigError(f"config.mesh.{axis}={sizes[axis]}: nothing is split over it yet; use config.mesh.data")
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def sharding(mesh: Mesh, *logical_axes: str) -> NamedSharding:
    """The placement of an array whose leading axes have these logical names; no name is fully replicated."""
    return NamedSharding(mesh, PartitionSpec(*(RULES[name] or None for name in logical_axes)))


def replicated(mesh: Mesh) -> NamedSharding:
    return sharding(mesh)


def batch_ways(mesh: Mesh) -> int:
    """Over how many devices a batch is split."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


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
    """Places this process's rows of a batch on its devices, split over the batch axes."""
    where = sharding(mesh, "batch")
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), where)
    return {name: jax.make_array_from_process_local_data(where, value) for name, value in batch.items()}


def split_kernels(mesh: Mesh) -> AbstractContextManager[None]:
    """Inside, kernels traced take their devices' rows of a batch: XLA cannot split a kernel's call by itself."""
    return dimba_kernels.sharding(mesh, batch=RULES["batch"])


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
