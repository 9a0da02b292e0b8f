"""`python -m dimba_jax.aot` for tests, on a recipe that is small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = f"--config={ROOT / 'configs/diffumamba.py'}:tiny"
LAYERS = 3
SMALL = ["--config.training.batch_size=32", f"--config.model.layers={LAYERS}", "--config.model.scan_layers=True"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: libtpu reads its settings once, and other tests load it with others."""
    environment = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "XLA_FLAGS")}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "dimba_jax.aot", *arguments],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
