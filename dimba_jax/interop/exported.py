"""A trained model as a folder to hand on: safetensors, JSON and the tokenizer, and nothing that would be executed.

Layout: `model.safetensors` (`params/…` of the network, `process/…` of a learned schedule), `config.json` (the run's
config and where the weights come from), `tokenizer.model` (sentencepiece; bytes need none), `README.md` (the card).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from dimba_jax.config import RunConfig, from_config_dict, to_dict
from dimba_jax.data.examples import DataError, parse_json, read_text
from dimba_jax.data.pieces import SentencePieceTokenizer
from dimba_jax.data.tokenizers import MODEL_FILE, ByteTokenizer, Tokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.process import Process
from dimba_jax.errors import CheckpointError, ConfigError
from dimba_jax.interop.weight_files import SAFETENSORS, own, read_weights
from dimba_jax.leaves import differences, flat, flat_parts, listed, shapes, unflat
from dimba_jax.models.build import abstract_denoiser

CONFIG, CARD = "config.json", "README.md"
NO_PLACE = "PATH_WAS_NOT_EXPORTED"  # no such file: what reads data says so, and --data_path takes its place
FORMAT = 1  # a change that older versions would misread raises it
LIBRARY = "dimba_jax"


class Exported(NamedTuple):
    """What such a folder holds."""

    config: RunConfig
    tokenizer: Tokenizer
    params: PyTree  # nested dict of float32 arrays
    process: Process
    step: int
    averaged: bool


def is_exported(folder: Path) -> bool:
    """Whether this is such a folder, and not the workdir of a run."""
    return (folder / CONFIG).is_file() and not (folder / "checkpoints").is_dir()


def write_exported(exported: Exported, folder: Path, *, card: str, half: bool = False) -> None:
    """Writes the folder whole, or not at all. Paths of the machine that the config names stay out of it.

    Args:
      card: the text of README.md.
      half: kernels of matmuls in bfloat16; a model that computes in it rounds them so, and samples the same.

    Raises:
      ConfigError: as `check_place`; `half` of a model that computes in float32.
    """
    check_place(folder)
    config = exported.config
    if half and config.model.dtype != "bfloat16":
        raise ConfigError(
            f"--dtype=bfloat16: this model computes in {config.model.dtype}, and would sample other texts"
        )
    values = {
        "library": LIBRARY,
        "format": FORMAT,
        "step": exported.step,
        "averaged": exported.averaged,
        "tokenizer": exported.tokenizer.to_dict()["kind"],
        "config": to_dict(_handed_on(config, averaged=exported.averaged)),
    }
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        draft.mkdir(parents=True)
        _save(draft / SAFETENSORS, _named(exported), half=half)
        if isinstance(exported.tokenizer, SentencePieceTokenizer):
            (draft / MODEL_FILE).write_bytes(exported.tokenizer.model)
        (draft / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (draft / CARD).write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Refuses a place that is not free.

    Raises:
      ConfigError: it is there and no empty folder.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(f"{folder} is there already: name a folder that is not, or is empty")


def read_exported(folder: Path) -> Exported:
    """Reads such a folder.

    Raises:
      CheckpointError: a file of it is missing, damaged, of another model or of a later version.
    """
    try:
        values = parse_json(read_text(own(folder, CONFIG)), str(folder / CONFIG))
        config = _config(folder, values)
        tokenizer = _tokenizer(folder, values.get("tokenizer"))
        if not (folder / SAFETENSORS).exists():
            raise DataError(f"it holds no {SAFETENSORS}: take the folder again")
        weights = read_weights(folder)
    except (ConfigError, DataError) as error:
        raise CheckpointError(f"{folder} cannot be used: {error}") from error
    _, abstract = abstract_denoiser(config, tokenizer.vocab_size)
    target = {"params": nnx.to_pure_dict(abstract), "process": make_process(config.process, tokenizer.vocab_size)}
    wanted = {f"{part}/{name}": leaf for part, leaves in flat_parts(target).items() for name, leaf in leaves.items()}
    if differ := differences(shapes(weights), shapes(wanted)):
        what = f"{folder / SAFETENSORS} is not of the model in {CONFIG}"
        raise CheckpointError(f"{what}: take both again\n  {listed(differ)}")
    found = {
        part: unflat(tree, {name: jnp.asarray(weights[f"{part}/{name}"]) for name in flat(tree)})
        for part, tree in target.items()
    }
    return Exported(config, tokenizer, found["params"], found["process"], values["step"], values["averaged"])


def _handed_on(config: RunConfig, *, averaged: bool) -> RunConfig:
    """The config without paths of the machine it was trained on, and with the parameters that the folder holds."""
    data = config.data
    return replace(
        config,
        data=replace(data, path=NO_PLACE if data.path else ""),
        tokenizer=replace(config.tokenizer, model=""),
        training=replace(
            config.training,
            init_from=NO_PLACE if config.training.init_from else "",
            teachers=NO_PLACE if config.training.teachers else "",
        ),
        sampling=replace(config.sampling, ema=averaged),
    )


def _config(folder: Path, values: Any) -> RunConfig:
    if not isinstance(values, dict) or values.get("library") != LIBRARY or not isinstance(values.get("config"), dict):
        raise ConfigError(f"{CONFIG} is not what `python -m dimba_jax.export` writes")
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{CONFIG} has the format {values.get('format')!r}, and this version of dimba_jax reads {FORMAT}: "
            "install a newer one"
        )
    for name, kind, what in (("step", int, "a whole number"), ("averaged", bool, "true or false")):
        if type(values.get(name)) is not kind:
            raise ConfigError(f"{CONFIG} has {name}={values.get(name)!r}: expected {what}")
    return from_config_dict(values["config"])


def _tokenizer(folder: Path, kind: Any) -> Tokenizer:
    if kind == "bytes":
        return ByteTokenizer()
    if kind != "sentencepiece":
        raise DataError(f"{CONFIG} names a tokenizer of kind {kind!r}: expected 'sentencepiece' or 'bytes'")
    path = own(folder, MODEL_FILE)
    if not path.is_file():
        raise DataError(f"{MODEL_FILE} is missing: take the folder again")
    return SentencePieceTokenizer(path.read_bytes(), str(path))


def _named(exported: Exported) -> dict[str, Any]:
    parts = flat_parts({"params": exported.params, "process": exported.process})
    return {f"{part}/{name}": leaf for part, leaves in parts.items() for name, leaf in leaves.items()}


def _save(path: Path, leaves: dict[str, Any], *, half: bool) -> None:
    from safetensors.flax import save_file

    def stored(name: str, leaf: Any) -> Any:
        dtype = jnp.bfloat16 if half and name.endswith("/kernel") else jnp.float32
        return jnp.asarray(np.asarray(leaf), dtype)

    save_file({name: stored(name, leaf) for name, leaf in leaves.items()}, path, metadata={"format": "flax"})
