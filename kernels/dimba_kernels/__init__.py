"""State-space operations in JAX: functions of arrays, differentiable in every input.

Needs jax alone. Each operation has a folder: `reference.py` is its meaning, `xla.py` its fast portable form.
"""

from dimba_kernels.causal_conv1d.api import causal_conv1d
from dimba_kernels.dispatch import Implementation
from dimba_kernels.selective_scan.api import selective_scan
from dimba_kernels.ssd.api import ssd, ssd_bidirectional

__all__ = ["Implementation", "causal_conv1d", "selective_scan", "ssd", "ssd_bidirectional"]
