"""The recipe of the smallest run there is, for tests that start commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = """
from dimba_jax.config import from_config_dict, to_config_dict

def get_config(arg=None):
    settings = {settings!r}
    if arg:
        settings["training"]["steps"] = int(arg)
    return to_config_dict(from_config_dict(settings))
"""


def tiny_recipe(data: Path, **groups: dict[str, Any]) -> str:
    """Its source, for pairs in the folder `data`; `groups` add to its settings. An argument is the number of steps."""
    settings: dict[str, dict[str, Any]] = {
        "data": {"path": str(data), "source_length": 4, "target_length": 4},
        "tokenizer": {"kind": "bytes"},
        "model": {"embedding_dim": 4, "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8},
        "process": {},
        "training": {"batch_size": 4},
        "sampling": {"steps": 2, "batch_size": 4},
    }
    for name, values in groups.items():
        settings[name] |= values
    return TEXT.format(settings=settings)
