"""Small models of bytes, as they are before training, or with answers that are known."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import RunConfig, from_config_dict, to_dict
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.models.build import make_denoiser
from dimba_jax.sampling.load import LoadedModel, from_parts

GROUPS: dict[str, dict[str, Any]] = {
    "data": {"source": "text", "source_length": 0, "target_length": 16, "normalize": "none"},
    "tokenizer": {"kind": "bytes"},
    "model": {
        "d_model": 16, "layers": 1, "pattern": ("attention",), "head_dim": 8, "mlp_ratio": 0.0,
        "self_conditioning": False, "modulation": "adaln_zero", "head": "untied",
    },
    "process": {"kind": "masked", "schedule": "log_linear"},
    "sampling": {"sampler": "confidence", "steps": 4, "batch_size": 4},
    "training": {"batch_size": 4},
}  # fmt: skip


def tiny_config(**groups: dict[str, Any]) -> RunConfig:
    return from_config_dict({name: GROUPS.get(name, {}) | groups.get(name, {}) for name in {*GROUPS, *groups}})


def tiny_model(config: RunConfig, seed: int = 0, scale: float = 1.0, letters: bool = False) -> LoadedModel:
    """A model with random parameters; `scale` 0 makes it uniform; with `letters` it writes a to z alone."""
    tokenizer = ByteTokenizer()
    network = make_denoiser(config, tokenizer.vocab_size, nnx.Rngs(seed))
    # noise on everything: what starts at zero (AdaLN, the head's bias) would leave the network blind to its input
    leaves, shape = jax.tree.flatten(nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [scale * (leaf + 0.3 * jax.random.normal(key, leaf.shape)) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(shape, noisy)
    if letters:
        ids = jnp.asarray(tokenizer.encode(string.ascii_lowercase))
        params["head"]["bias"] = (params["head"]["bias"] - 100.0).at[ids].add(100.0)
    return from_parts(config, tokenizer, params, make_process(config.process, tokenizer.vocab_size), 7)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    return tiny_config


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LoadedModel]:
    return tiny_model


@pytest.fixture
def make_gaussian() -> Callable[[], LoadedModel]:
    """A model that diffuses embeddings of pairs."""

    def make() -> LoadedModel:
        config = from_config_dict(
            {
                "data": {"source_length": 4, "target_length": 4},
                "model": {"embedding_dim": 8, "d_model": 16, "layers": 1, "pattern": ("attention",), "head_dim": 8},
                "process": {"timesteps": 10},
                "sampling": {"steps": 2},
            }
        )
        network = make_denoiser(config, ByteTokenizer.vocab_size, nnx.Rngs(0))
        process = make_process(config.process, ByteTokenizer.vocab_size)
        return from_parts(config, ByteTokenizer(), nnx.state(network, nnx.Param), process, 7)

    return make


@pytest.fixture
def save_model() -> Callable[[LoadedModel, Path], Path]:
    """Writes a model as a checkpoint; returns its workdir."""

    def save(model: LoadedModel, workdir: Path) -> Path:
        params = nnx.to_pure_dict(nnx.state(model.denoiser, nnx.Param))
        state = {"params": params, "ema": params, "process": model.process}
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(
                model.step, state, data_state=None, config=to_dict(model.config), tokenizer=model.tokenizer.to_dict()
            )
        return workdir

    return save
