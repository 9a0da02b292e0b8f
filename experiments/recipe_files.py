"""The recipes of configs/, by name, with nothing imported but what they import."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def recipe(name: str) -> Any:
    """The module of `configs/NAME.py`."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
