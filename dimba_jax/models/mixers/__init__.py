"""Mixers: what carries information along the sequence. `(x, mask, state) -> (y, state)`."""

from dimba_jax.models.mixers.attention import Attention
from dimba_jax.models.mixers.build import make_mixer
from dimba_jax.models.mixers.core import Core, Mixer
from dimba_jax.models.mixers.mamba import MambaCore
from dimba_jax.models.mixers.mamba2 import Mamba2Core
from dimba_jax.models.mixers.scanning import Causal, Shared, Tied, Untied
from dimba_jax.models.mixers.state import KVCache, ScanSides, ScanState, Sides, State

__all__ = [
    "Attention",
    "Causal",
    "Core",
    "KVCache",
    "Mamba2Core",
    "MambaCore",
    "Mixer",
    "ScanSides",
    "ScanState",
    "Shared",
    "Sides",
    "State",
    "Tied",
    "Untied",
    "make_mixer",
]
