"""What an import brings along, in a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "grain", "orbax", "tensorboardX", "matplotlib", "nltk", "sentencepiece", "triton", "jax_triton", "libtpu", "torch",
    "transformers", "datasets", "tqdm",
}  # fmt: skip


def modules_after(code: str) -> set[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    shown = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{shown}"], capture_output=True, text=True, check=True, env=environment
    )
    return set(done.stdout.split())


def test_the_library_brings_nothing():
    assert not modules_after("import dimba_jax, dimba_jax.config") & (HEAVY | {"jax", "flax", "numpy"})


def test_kernels_bring_jax_alone():
    found = modules_after("import dimba_kernels")
    assert "jax" in found and not found & (HEAVY | {"flax", "optax", "dimba_jax"})


def test_a_loader_brings_no_training():
    found = modules_after("import dimba_jax; dimba_jax.load, dimba_jax.generate, dimba_jax.complete")
    assert "orbax" in found and not found & (HEAVY - {"orbax"})


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "strip", "export"])
def test_help_brings_no_jax(command):
    code = f"from dimba_jax import {command}; assert {command}.main(['{command}', '--wrong=1']) == 2"
    assert not modules_after(code) & (HEAVY | {"jax", "flax", "numpy"})


def test_what_the_package_offers():
    import dimba_jax
    from dimba_jax.config import RunConfig

    assert dimba_jax.RunConfig is RunConfig
    assert all(getattr(dimba_jax, name) for name in dimba_jax.__all__ if name != "__version__")
    assert set(dimba_jax.__all__) <= set(dir(dimba_jax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dimba_jax.nothing  # noqa: B018
