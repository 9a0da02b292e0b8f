"""Commands of the library in processes of their own: their environment, and a port where several can meet."""

import os
import socket
from pathlib import Path

import dimba_jax

REPOSITORY = Path(dimba_jax.__file__).parents[1]


def environment(devices: int = 1) -> dict[str, str]:
    """This process's, but for JAX's settings: so many devices of the CPU, and programs that compile fast."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'kernels'}",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
