"""The training step and the sampling step of a config, compiled for devices that need not be there."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import dimba_kernels
import jax
import jax.numpy as jnp
from dimba_kernels.dispatch import obstacle
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from dimba_jax import parallel
from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.models.build import abstract_denoiser, check_implementation, kernels_asked_for
from dimba_jax.sampling.discrete.sample import sample_tokens
from dimba_jax.scale.chips import GIB, Target
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.setup import fresh_state
from dimba_jax.training.state import TrainState
from dimba_jax.training.step import make_train_step

Part = Literal["train", "sample"]


@dataclass(frozen=True)
class Program:
    """A compiled program, what was traced for it, and the abstract arguments by kind, each with its placement."""

    part: Part
    mesh: Mesh
    traced: Any
    compiled: Any
    arguments: dict[str, PyTree]
    rows: int
    seconds: float


@dataclass(frozen=True)
class TooLarge:
    """A program that the compiler refuses. needed, available: bytes of HBM on a device, as far as it says them."""

    part: Part
    mesh: Mesh
    arguments: dict[str, PyTree]
    rows: int
    needed: float
    available: float
    message: str


def compile_part(part: Part, config: RunConfig, target: Target) -> Program | TooLarge:
    """`part` of the config for the target, over the config's mesh.

    The vocabulary is the one that the config asks for: no tokenizer is trained or read.

    Raises:
      ConfigError: a mesh or kernels unfit for the devices; a GPU's kernels that cannot be compiled here; rows or
        positions that do not fit the mesh; "sample" of a process on embeddings.
    """
    mesh = parallel.make_mesh(config.mesh, target.devices)
    traces = {"train": _train, "sample": _sample}
    since = time.monotonic()
    with dimba_kernels.target(target.platform), parallel.split_kernels(mesh):
        check_implementation(config)
        missing = obstacle("gpu") if target.platform == "gpu" and config.model.implementation == "auto" else None
        if missing is not None:  # the program would be another one
            raise ConfigError(f"--topology={target.topology}: {missing}, or set --config.model.implementation=xla")
        trace, arguments, rows = traces[part](config, mesh)
        with kernels_asked_for(config):
            traced = trace()
        platform = "cuda" if target.platform == "gpu" else target.platform  # JAX knows "gpu" only where one is
        lowered = traced.lower(lowering_platforms=(platform,))
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or "hbm" not in str(error).lower():
                raise
            return _refused(part, mesh, arguments, rows, str(error))
    return Program(part, mesh, traced, compiled, arguments, rows, time.monotonic() - since)


_Traced = tuple[Callable[[], Any], dict[str, PyTree], int]


def _train(config: RunConfig, mesh: Mesh) -> _Traced:
    rows, length = config.training.batch_size, config.data.source_length + config.data.target_length
    parallel.check_batch(mesh, rows, "config.training.batch_size")
    parallel.check_batch(mesh, rows // config.training.accumulate, "config.training.batch_size / accumulate")
    parallel.check_length(mesh, length)
    vocabulary = _vocabulary(config)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = jax.eval_shape(fresh_state(config, vocabulary, optimizer), _key())
    where = parallel.placement(mesh, state)
    state: TrainState = _placed(state, where)
    shape = (rows, length)
    batch = _batch(mesh, {"tokens": (shape, jnp.int32), "target": (shape, jnp.bool_), "valid": (shape, jnp.bool_)})
    step = make_train_step(abstract_denoiser(config, vocabulary)[0], optimizer, config, where)
    key = _placed(_key(), parallel.replicated(mesh))
    rest = (state.step, state.process, state.timesteps, state.totals, key)
    kinds = {"parameters": state.params, "average": state.ema, "moments": state.opt_state, "batch": batch}
    return lambda: step.trace(state, batch, key), kinds | {"other": rest}, rows


def _sample(config: RunConfig, mesh: Mesh) -> _Traced:
    """One step of denoising, whose loop the program runs once, of `config.sampling.batch_size` rows or of the next
    number of them that the mesh can split."""
    if config.process.kind != "masked":
        raise ConfigError(f"the sampling step of process.kind={config.process.kind!r} is not compiled: 'masked' is")
    ways, length = parallel.batch_ways(mesh), config.data.source_length + config.data.target_length
    rows = -(-config.sampling.batch_size // ways) * ways
    parallel.check_length(mesh, length)
    vocabulary = _vocabulary(config)
    graphdef, state = abstract_denoiser(config, vocabulary)
    params = nnx.to_pure_dict(state)
    params = _placed(params, parallel.placement(mesh, params))
    process = jax.eval_shape(lambda: make_process(config.process, vocabulary))
    process = _placed(process, jax.tree.map(lambda _: parallel.replicated(mesh), process))
    settings = dataclasses.replace(config.sampling, steps=1)
    shape = (rows, length)
    batch = _batch(mesh, {"tokens": (shape, jnp.int32), "editable": (shape, jnp.bool_), "visible": (shape, jnp.bool_)})
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    keys = _placed(keys, parallel.sharding(mesh, "batch"))

    def step(params: PyTree, process: Any, batch: dict[str, Any], keys: Any) -> Any:
        denoiser: Any = nnx.merge(graphdef, params)
        result = sample_tokens(
            denoiser, process, batch["tokens"], batch["editable"], batch["visible"], keys, settings, config=config
        )
        return result.tokens

    out = parallel.sharding(mesh, "batch", "length")
    kinds = {"parameters": params, "batch": batch, "other": (process, keys)}
    return lambda: jax.jit(step, out_shardings=out).trace(params, process, batch, keys), kinds, rows


def _vocabulary(config: RunConfig) -> int:
    return ByteTokenizer.vocab_size if config.tokenizer.kind == "bytes" else config.tokenizer.vocab_size


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _placed(tree: PyTree, where: PyTree) -> Any:
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, where)


def _batch(mesh: Mesh, parts: dict[str, tuple[tuple[int, int], Any]]) -> dict[str, jax.ShapeDtypeStruct]:
    where = parallel.sharding(mesh, "batch", "length")
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in parts.items()}


_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def _refused(part: Part, mesh: Mesh, arguments: dict[str, PyTree], rows: int, message: str) -> TooLarge:
    """From 'Ran out of memory on HBM, the total memory required ... (36.43G) exceeds available HBM (15.75G)'."""
    sizes = [float(size) * _UNITS[unit] for size, unit in re.findall(r"\b([\d.]+)([KMGT])\b", message)]
    needed, available = (*sizes, 0.0, 0.0)[:2]
    return TooLarge(part, mesh, arguments, rows, needed, available, " ".join(message.split())[:500])
