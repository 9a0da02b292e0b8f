"""Every kernel compiles for its machine: for Hopper with no register spilled, and for three TPU generations."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# nobody to ask what machine this is, and no other process to be kept off a chip
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3",
}  # fmt: skip
OPERATIONS = ["causal_conv1d", "selective_scan", "ssd", "ssd_bidirectional", "ssd_pair"]
GPU_ALONE = ["causal_conv1d_pair", "gated_rms_norm", "modulated_rms_norm"]


def compiled(kind: str, operation: str) -> dict:
    """What `lowering.py` prints, in a process that interprets nothing."""
    settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT / "kernels")} | NO_TPU
    environment = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "XLA_FLAGS")}
    script = str(Path(__file__).with_name("lowering.py"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, kind, operation],
        env=environment | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def _missing(*packages: str) -> str | None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"no {' and no '.join(missing)}: install the `gpu` or `tpu` extra" if missing else None


@pytest.mark.skipif(_missing("triton", "jax_triton") is not None, reason=_missing("triton", "jax_triton") or "")
@pytest.mark.parametrize("operation", [*OPERATIONS, *GPU_ALONE])
def test_gpu_kernels_compile_for_hopper(operation):
    kernels = compiled("gpu", operation)
    assert kernels.pop("lowered")
    large = {name: result for name, result in kernels.items() if name.startswith("issue bfloat16")}
    spilled = {name: result for name, result in large.items() if result["spilled"] > 0}
    assert not spilled
    assert all(result["shared"] <= 227 * 1024 for result in kernels.values())


@pytest.mark.slow
@pytest.mark.skipif(_missing("triton", "jax_triton") is not None, reason=_missing("triton", "jax_triton") or "")
@pytest.mark.parametrize("operation", ["ssd", "ssd_bidirectional", "ssd_pair"])
def test_gpu_kernels_of_float32_compile_for_hopper(operation):
    kernels = compiled("slow", operation)
    assert kernels.pop("lowered")
    assert all(result["shared"] <= 227 * 1024 for result in kernels.values())


@pytest.mark.skipif(_missing("libtpu") is not None, reason=_missing("libtpu") or "")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_tpu_kernels_compile_for_three_generations(operation):
    kernels = compiled("tpu", operation)
    assert {name.split()[0] for name in kernels} == {"v5e", "v5p", "v6e"}
    assert all(count >= 2 for count in kernels.values()), kernels
