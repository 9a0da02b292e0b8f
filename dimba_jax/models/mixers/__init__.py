"""Mixers: what carries information along the sequence. `(x, mask, state) -> (y, state)`."""

from dimba_jax.models.mixers.attention import Attention
from dimba_jax.models.mixers.bidirectional import Shared, Tied, Untied
from dimba_jax.models.mixers.build import make_mixer
from dimba_jax.models.mixers.core import Causal, Core, Mixer, ScanState
from dimba_jax.models.mixers.mamba import MambaCore
from dimba_jax.models.mixers.mamba2 import Mamba2Core

__all__ = [
    "Attention",
    "Causal",
    "Core",
    "Mamba2Core",
    "MambaCore",
    "Mixer",
    "ScanState",
    "Shared",
    "Tied",
    "Untied",
    "make_mixer",
]
