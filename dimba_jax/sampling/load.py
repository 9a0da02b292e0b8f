"""A trained model, from a working directory, from an exported folder or from parts in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax import nnx
from jaxtyping import PyTree

from dimba_jax.checkpoint import CheckpointError, Checkpoints
from dimba_jax.config import RunConfig, from_config_dict
from dimba_jax.data.examples import DataError
from dimba_jax.data.tokenizers import Tokenizer, tokenizer_from_dict
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.process import Process
from dimba_jax.errors import ConfigError
from dimba_jax.interop.exported import is_exported, read_exported
from dimba_jax.models.build import abstract_denoiser, portable

DESCRIPTION = ("arrays", "config", "tokenizer")  # the small parts of a checkpoint


@dataclass(frozen=True)
class LoadedModel:
    """All that sampling needs. The config is the one of the training run, of an ensemble the first network's."""

    denoiser: Any  # a Denoiser, or for a process on tokens a TokenDenoiser or an Ensemble of them
    process: Any  # with the bins of a learned schedule
    tokenizer: Tokenizer
    config: RunConfig
    step: int
    others: tuple[tuple[str, int], ...] = ()  # of an ensemble: further workdirs and their steps


def load(
    workdir: str | Path, step: int | None = None, ema: bool | None = None, scan_layers: bool | None = None
) -> LoadedModel:
    """Reads a checkpoint: the latest, or that of `step`; with averaged parameters if `ema`, or if the config says so.

    `scan_layers` takes the place of the config's model.scan_layers: layers one by one (False) compile for longer, and a
    call of theirs is faster on a GPU; the parameters are the same.

    A folder that `python -m dimba_jax.export` wrote holds one step, and one kind of parameters. Where files of the
    latest checkpoint are damaged, the one before it is taken, and that is said. Kernels that cannot run here give way
    to those that can, which is said, too.

    Raises:
      FileNotFoundError: no such checkpoint; the message says what there is.
      CheckpointError: it is damaged, or does not fit the model that its config describes.
    """
    if is_exported(Path(workdir)):
        return _load_exported(Path(workdir), step, ema, scan_layers)
    with Checkpoints(workdir) as checkpoints:
        read = checkpoints.resolve(step, DESCRIPTION)
        try:
            if ema is None:
                ema = from_config_dict(checkpoints.read_config(read)).sampling.ema
            # once and for all that is read: a run may be adding and removing steps, and one may be damaged
            read = checkpoints.resolve(step, (*DESCRIPTION, "ema" if ema else "params", "process"))
            config = _with_scan(portable(from_config_dict(checkpoints.read_config(read))), scan_layers)
            tokenizer = tokenizer_from_dict(checkpoints.read_tokenizer(read))
            graph, abstract = abstract_denoiser(config, tokenizer.vocab_size)
        except (ConfigError, DataError) as error:
            raise CheckpointError(
                f"{workdir} holds a checkpoint that this version of dimba_jax cannot use: {error}"
            ) from error
        params = checkpoints.read_params(read, ema=ema, abstract=abstract)
        process = checkpoints.restore(read, {"process": make_process(config.process, tokenizer.vocab_size)})["process"]
    return LoadedModel(nnx.merge(graph, params), process, tokenizer, config, read)


def _with_scan(config: RunConfig, scan_layers: bool | None) -> RunConfig:
    return config if scan_layers is None else replace(config, model=replace(config.model, scan_layers=scan_layers))


def _load_exported(folder: Path, step: int | None, ema: bool | None, scan_layers: bool | None) -> LoadedModel:
    found = read_exported(folder)
    if step not in (None, found.step):
        raise FileNotFoundError(f"{folder} holds step {found.step} alone, and not step {step}")
    if ema not in (None, found.averaged):
        holds = "averaged parameters" if found.averaged else "parameters as trained, without their average"
        raise CheckpointError(f"{folder} holds {holds}, and no others: leave ema={ema} out")
    config = _with_scan(portable(found.config), scan_layers)
    return from_parts(config, found.tokenizer, found.params, found.process, found.step)


def from_parts(config: RunConfig, tokenizer: Tokenizer, params: PyTree, process: Process, step: int) -> LoadedModel:
    """A model from a training run's own parts; `params` is an nnx.State or a nested dict of arrays."""
    graph, abstract = abstract_denoiser(config, tokenizer.vocab_size)
    if not isinstance(params, nnx.State):
        nnx.replace_by_pure_dict(abstract, params)
        params = abstract
    return LoadedModel(nnx.merge(graph, params), process, tokenizer, config, step)
