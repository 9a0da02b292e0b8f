"""Diffusion language models on Mamba backbones, in JAX.

    import dimba_jax
    model = dimba_jax.load("runs/quickstart")
    dimba_jax.generate(model, ["how do i bake bread?"], model.config.sampling)

Importing the package takes no time: what it offers is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimba_jax.config import RunConfig, from_config_dict
    from dimba_jax.errors import UserError
    from dimba_jax.sampling.generate import complete, generate
    from dimba_jax.sampling.load import load

    __version__: str

__all__ = ["RunConfig", "UserError", "__version__", "complete", "from_config_dict", "generate", "load"]

_PLACES = {
    "RunConfig": "config", "from_config_dict": "config", "UserError": "errors", "load": "sampling.load",
    "generate": "sampling.generate", "complete": "sampling.generate",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dimba-jax")
    if name in _PLACES:
        return getattr(importlib.import_module(f"dimba_jax.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'dimba_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
