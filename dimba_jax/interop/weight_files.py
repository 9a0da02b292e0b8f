"""The weights in a Hugging Face folder: safetensors, or what torch saved; one file, or several with an index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dimba_jax.config import ConfigError

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors by name, float32.

    Raises:
      ConfigError: the folder holds no weights, or only torch's without torch to read them.
    """
    for name, read in {SAFETENSORS: _read_safetensors, TORCH: _read_torch}.items():
        files = _files(folder, name)
        if files:
            return {key: value for file in files for key, value in read(file).items()}
    raise ConfigError(f"{folder} holds neither {SAFETENSORS} nor {TORCH}: give the folder of a downloaded checkpoint")


def _files(folder: Path, name: str) -> list[Path]:
    """The file of this name, or the parts that its index lists."""
    if (folder / name).exists():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.exists():
        return []
    parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    absent = [part for part in parts if not (folder / part).exists()]
    if absent:
        raise ConfigError(f"{index} lists {', '.join(absent)}, which the folder lacks: download the rest")
    return [folder / part for part in parts]


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors

    # as JAX's arrays, since numpy itself has no bfloat16
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path} cannot be read as safetensors ({error}): download it again") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"{path} was saved by torch, which is not here to read it ({error}): install torch, "
            f"or take the checkpoint's {SAFETENSORS}"
        ) from None
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.float().numpy() for name, value in weights.items()}
