"""There is no kernel of this norm for a TPU, where XLA fuses it into what is around."""

from __future__ import annotations

from typing import Any

import jax


def unsupported(**arguments: Any) -> str:
    """Why these arguments cannot run here."""
    del arguments
    return "there is no kernel for TPUs, where XLA's own fusions do"


def modulated_rms_norm(*arrays: jax.Array, **arguments: Any) -> tuple[jax.Array, jax.Array]:
    """Never chosen."""
    raise NotImplementedError(unsupported())
