"""Mamba and Mamba-2 mixers from Hugging Face `transformers` (`MambaMixer`, `Mamba2Mixer`).

Linear weights there are (outputs, inputs) and here (inputs, outputs); a depthwise convolution there
is (channels, 1, width) and here (channels, width). Everything else has the same layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from flax import nnx
from jaxtyping import ArrayLike

from dimba_jax.models.mixers import Causal, Mamba2Core, MambaCore


def load_mixer(mixer: Causal, weights: Mapping[str, ArrayLike]) -> None:
    """Copies a `transformers` mixer's state dict (as numpy arrays) into a mixer of the same shape.

    Raises:
      ValueError: a weight is missing, unknown (such as projection biases, which have no place here)
        or of another shape.
    """
    places = _places(mixer)
    if set(places) != set(weights):
        missing, unknown = sorted(set(places) - set(weights)), sorted(set(weights) - set(places))
        raise ValueError(f"not the weights of this mixer: missing {missing}, unknown {unknown}")
    for name, (param, convert) in places.items():
        value = convert(np.asarray(weights[name], np.float32))
        if value.shape != param.shape:
            raise ValueError(f"{name}: converted to shape {value.shape}, the mixer expects {param.shape}")
        param[...] = value


def _places(mixer: Causal) -> dict[str, tuple[nnx.Param, Callable[[np.ndarray], np.ndarray]]]:
    core = cast(MambaCore | Mamba2Core, mixer.core)
    places = {
        "in_proj.weight": (mixer.in_proj.kernel, np.transpose),
        "out_proj.weight": (mixer.out_proj.kernel, np.transpose),
        "conv1d.weight": (core.conv, lambda w: w.squeeze(1)),
        "conv1d.bias": (core.conv_bias, np.asarray),
        "A_log": (core.A_log, np.asarray),
        "D": (core.D, np.asarray),
    }
    if isinstance(core, Mamba2Core):
        return places | {"dt_bias": (core.dt_bias, np.asarray), "norm.weight": (core.norm.scale, np.asarray)}
    return places | {
        "x_proj.weight": (core.x_proj.kernel, np.transpose),
        "dt_proj.weight": (core.dt_proj.kernel, np.transpose),
        "dt_proj.bias": (core.dt_bias, np.asarray),
    }
