"""The weights in a Hugging Face folder: safetensors, or what torch saved; one file, or several with an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dimba_jax.data.examples import DataError, inside, parse_json, read_text
from dimba_jax.errors import ConfigError

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors by name, float32. Nothing in the files is executed: of what torch saved, tensors alone are read.

    Raises:
      ConfigError: the folder holds no weights, or only torch's without torch to read them; its index names files
        elsewhere; a file is a link out of it, or cannot be read.
    """
    for name, read in {SAFETENSORS: _read_safetensors, TORCH: _read_torch}.items():
        files = _files(folder, name)
        if files:
            return {key: value for file in files for key, value in read(file).items()}
    raise ConfigError(f"{folder} holds neither {SAFETENSORS} nor {TORCH}: give the folder of a downloaded checkpoint")


def _files(folder: Path, name: str) -> list[Path]:
    """The file of this name, or the parts that its index lists."""
    if (folder / name).exists():
        return [own(folder, name)]
    index = folder / f"{name}.index.json"
    if not index.exists():
        return []
    try:
        parts = sorted({str(part) for part in parse_json(read_text(index), str(index))["weight_map"].values()})
        for part in parts:
            inside(folder, part)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is no index of weights ({type(error).__name__}: {error})") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
    absent = [part for part in parts if not (folder / part).exists()]
    if absent:
        raise ConfigError(f"{index} lists {', '.join(absent)}, which the folder lacks: download the rest")
    return [own(folder, part) for part in parts]


def own(folder: Path, name: str) -> Path:
    """A file of the folder that is no link out of it; the hub's cache links from snapshots/ID to blobs beside it."""
    path, root = (folder / name).resolve(), folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if not path.is_relative_to(root):
        raise ConfigError(f"{folder / name} is a link to {path}, outside of the folder: put the file itself there")
    return path


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
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch refuses anything but tensors, and breaks off in many ways
        raise ConfigError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}): take {SAFETENSORS}"
        ) from None
    return {name: value.float().numpy() for name, value in weights.items()}
