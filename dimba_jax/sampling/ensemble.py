"""Several trained models as one that writes with the mean of their distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.data.tokenizers import Tokenizer
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.sampling.load import LoadedModel, load


def with_others(
    model: LoadedModel,
    named: str | Path,
    others: Sequence[str | Path],
    *,
    ema: bool | None = None,
    scan_layers: bool | None = None,
) -> LoadedModel:
    """A model (loaded from `named`) and those of other workdirs, each with its latest checkpoint, as one (`together`).

    Args:
      ema, scan_layers: as for `load`, of the others.

    Raises:
      ConfigError: no other is named, one is named twice, or as `together`.
      FileNotFoundError, CheckpointError: as `load`.
    """
    if not others:
        raise ConfigError("an ensemble needs further models: name their workdirs")
    paths = [Path(path).resolve() for path in (named, *others)]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ConfigError(f"{others[i - 1]} is named twice: an ensemble is of different models")
    loaded = {str(path): load(path, ema=ema, scan_layers=scan_layers) for path in others}
    return together({str(named): model} | loaded)


def together(models: Mapping[str, LoadedModel]) -> LoadedModel:
    """Loaded models by name as one. Its config, process and step are the first one's, its denoiser an `Ensemble`.

    Raises:
      ConfigError: a model is not masked, has blocks, or does not read and write what the first does.
    """
    (named, model), *others = models.items()
    for name, one in models.items():
        check_alike(one, name, model.config, model.tokenizer, named)
    return dataclasses.replace(
        model,
        denoiser=Ensemble([one.denoiser for one in models.values()]),
        others=tuple((name, one.step) for name, one in others),
    )


def check_alike(model: LoadedModel, named: str | Path, config: RunConfig, tokenizer: Tokenizer, other: str) -> None:
    """Whether a model's distribution is over what another (of `config` and `tokenizer`) reads and writes.

    Raises:
      ConfigError: it is not; the message names it, and the other where the two differ.
    """
    process = model.config.process
    if process.kind != "masked" or process.block_size:
        found = f"blocks of {process.block_size}" if process.block_size else process.kind
        raise ConfigError(
            f"{named} ({found}): distributions are averaged and learned from over whole rows of masked diffusion alone"
        )
    mine, theirs = _read(model.config), _read(config)
    for name, value in mine.items():
        if value != theirs[name]:
            raise ConfigError(f"{named} has {name}={value!r}, {other} {theirs[name]!r}: they must have the same")
    if model.tokenizer.to_dict() != tokenizer.to_dict():
        raise ConfigError(
            f"{named} and {other} have different tokenizers: train on the same data with the same config.tokenizer, "
            "or give both the file of one in config.tokenizer.model"
        )


def _read(config: RunConfig) -> dict[str, Any]:
    """What decides how a row reads, and what the share of masks in it is at a time."""
    data, process = config.data, config.process
    return {
        "data.source_length": data.source_length, "data.target_length": data.target_length,
        "data.normalize": data.normalize, "process.kind": process.kind, "process.schedule": process.schedule,
        "process.condition_dropout > 0": process.condition_dropout > 0,
        "process.loss_on_padding": process.loss_on_padding,
        "data.text.layout": data.text.layout if data.source == "text" else None,
    }  # fmt: skip
