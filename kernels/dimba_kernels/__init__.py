"""State-space operations in JAX: functions of arrays, differentiable in every input.

Needs jax alone; the GPU kernels also need jax-triton, the TPU kernels libtpu. Each operation has a folder:
`reference.py` is its meaning, `xla.py` its fast portable form, `gpu.py` and `tpu.py` its kernels.
"""

from dimba_kernels.causal_conv1d.api import causal_conv1d, causal_conv1d_pair
from dimba_kernels.dispatch import Implementation, target
from dimba_kernels.gated_norm.api import gated_rms_norm
from dimba_kernels.modulated_norm.api import modulated_rms_norm
from dimba_kernels.selective_scan.api import selective_scan
from dimba_kernels.sharding import sharding
from dimba_kernels.ssd.api import ssd, ssd_bidirectional, ssd_pair

__all__ = [
    "Implementation",
    "causal_conv1d",
    "causal_conv1d_pair",
    "gated_rms_norm",
    "modulated_rms_norm",
    "selective_scan",
    "sharding",
    "ssd",
    "ssd_bidirectional",
    "ssd_pair",
    "target",
]
