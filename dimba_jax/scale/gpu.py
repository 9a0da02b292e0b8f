"""NVIDIA GPUs described to XLA, which then compiles for them on a machine without one.

JAX's CUDA plugin (the `gpu` extra) holds the compiler. What it would time on the device, several forms of a matmul, it
takes as it comes (FLAGS, which stand behind a user's own). Attention and matmuls are library calls (cuDNN, cuBLAS): the
program tells what they read and write and not how long they take, nor how much room cuDNN takes to work in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dimba_kernels.dispatch import cuda_plugin

# without a device nothing can be timed, and without times XLA would write matmuls of its own where it calls cuBLAS on
# one; read when JAX's compiler is loaded
FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")

# A Hopper GPU with 132 multiprocessors (CUDA C++ Programming Guide, table "Technical Specifications per Compute
# Capability", 9.0; the H200's data sheet for memory), as stream_executor.GpuTargetConfigProto
_H200 = """
gpu_device_info {
  name: "NVIDIA H200" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32 threads_per_block_limit: 1024
  threads_per_core_limit: 2048 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 memory_bandwidth: 4800000000000 device_memory_size: 151397597184 device_address_bits: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  driver_version: "13.0.0" runtime_version: "%(cuda)s" compile_time_toolkit_version: "%(cuda)s" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""
_DESCRIPTIONS = {"h200": _H200}


def described(kind: str, count: int) -> Sequence[Any]:
    """`count` GPUs of one host, where `cuda_plugin` finds one."""
    from jax.experimental import topologies

    cuda = "12.8.0" if cuda_plugin() == "xla_cuda12" else "13.0.0"
    target = _DESCRIPTIONS[kind] % {"cuda": cuda}
    return topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{count}").devices
