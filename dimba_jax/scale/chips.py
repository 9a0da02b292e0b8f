"""Accelerators that programs are compiled for, as their maker publishes them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dimba_kernels.dispatch import cuda_plugin

from dimba_jax.config import ConfigError
from dimba_jax.scale import gpu

GIB = 2**30
_PAGES = "https://docs.cloud.google.com/tpu/docs/"


@dataclass(frozen=True)
class Chip:
    """One chip. Rates are a second's: bfloat16 FLOPs, bytes of HBM, bytes that it can send over all of its links.

    hbm: bytes that a program gets, less than what is printed on the chip. clock: cycles a second of its compiler's
    estimates; None: it makes none.
    """

    name: str
    flops: float
    bandwidth: float
    links: float
    hbm: float
    clock: float | None
    source: str


# links: "1,600 Gbps", "4,800 Gbps" and "3,200 Gbps" there, one way; hbm: what the compiler's refusals name as available
TPUS = {
    "v5e": Chip("TPU v5e", 197e12, 819e9, 200e9, 15.75 * GIB, 1.5e9, _PAGES + "v5e"),
    "v5p": Chip("TPU v5p", 459e12, 2765e9, 600e9, 95.74 * GIB, 1.75e9, _PAGES + "v5p"),
    "v6e": Chip("TPU v6e", 918e12, 1600e9, 400e9, 31.25 * GIB, 1.75e9, _PAGES + "v6e"),
}
# without sparsity; NVLink's "900 GB/s" are both ways; hbm: three quarters of the 140.4 GiB that the driver shows, which
# JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
GPUS = {
    "h200": Chip(
        "NVIDIA H200", 989e12, 4800e9, 450e9, 105.3 * GIB, None, "https://www.nvidia.com/en-us/data-center/h200/"
    ),
}


@dataclass(frozen=True)
class Target:
    """Devices to compile for; chip is None where nothing is said of their speed."""

    topology: str
    platform: Literal["tpu", "gpu", "cpu"]
    devices: Sequence[Any]
    chip: Chip | None


def target_of(topology: str) -> Target:
    """The devices of a slice such as "v5e:16x16", "v5p:8x8x8" or "v6e:4x4", of a host with "h200:8", or of "cpu:8".

    Raises:
      ConfigError: a topology that is unknown or that no such chip comes in; libtpu or JAX's CUDA plugin is not
        installed; a number of CPU devices that this process was not started with.
    """
    generation, _, shape = topology.partition(":")
    if generation == "cpu":
        return _cpu(topology, shape)
    if generation in GPUS:
        return _gpu(topology, generation, shape)
    if generation not in TPUS or not shape:
        raise ConfigError(
            f"--topology={topology} is unknown: expected {', '.join(TPUS)} and a shape, such as v5e:16x16, "
            f"{', '.join(GPUS)} and a number of GPUs of a host, such as h200:8, or cpu:8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={topology} needs libtpu, which is not installed: install the `tpu` extra")
    from dimba_kernels.tpu_compile import topology as described

    try:
        devices = described(topology).devices
    except Exception as error:  # libtpu's own, of several types
        reason = " ".join(str(error).split())
        raise ConfigError(f"--topology={topology}: no {generation} slice has this shape ({reason})") from None
    return Target(topology, "tpu", devices, TPUS[generation])


def _gpu(topology: str, kind: str, count: str) -> Target:
    if count not in map(str, range(1, 9)):
        raise ConfigError(f"--topology={topology}: expected 1 to 8 GPUs of one host, such as {kind}:8")
    if cuda_plugin() is None:
        needs = "needs JAX's CUDA plugin (jax_plugins.xla_cuda13), which is not all installed: install the `gpu` extra"
        raise ConfigError(f"--topology={topology} {needs}")
    try:
        devices = gpu.described(kind, int(count))
    except Exception as error:  # the plugin's own, of several types
        reason = " ".join(str(error).split())
        raise ConfigError(f"--topology={topology}: JAX's CUDA plugin refuses its description ({reason})") from None
    return Target(topology, "gpu", devices, GPUS[kind])


def _cpu(topology: str, count: str) -> Target:
    import jax

    if not count.isdigit() or int(count) < 1:
        raise ConfigError(f"--topology={topology}: expected a number of devices, such as cpu:8")
    devices = jax.devices("cpu")
    if len(devices) < int(count):
        raise ConfigError(
            f"--topology={topology}: this process has {len(devices)} CPU devices; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return Target(topology, "cpu", devices[: int(count)], None)
