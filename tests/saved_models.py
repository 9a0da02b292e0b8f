"""Checkpoints of small untrained models of pairs, masked unless told otherwise, for tests of several models at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import RunConfig, from_config_dict, to_dict
from dimba_jax.data.tokenizers import ByteTokenizer, Tokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.models.build import make_denoiser

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "masked": {},
    "blocks": {"process": {"block_size": 2}},
    "autoregressive": {
        "process": {"kind": "autoregressive"},
        "model": {"direction": "causal"},
        "sampling": {"temperature": 1.0},
    },
    "gaussian": {
        "process": {"kind": "gaussian", "schedule": "cosine"},
        "model": {"head": "tied", "embedding_dim": 4},
        "sampling": {"sampler": "ddim", "temperature": 1.0},
    },
}


def saved_config(kind: str = "masked", **groups: dict[str, Any]) -> RunConfig:
    """The config of a kind; `groups` add to its settings."""
    values: dict[str, dict[str, Any]] = {
        "data": {"source_length": 4, "target_length": 4, "normalize": "none"},
        "tokenizer": {"kind": "bytes"},
        "model": {
            "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8, "mlp_ratio": 1.0, "head": "untied",
            "self_conditioning": False,
        },
        "process": {"kind": "masked", "schedule": "log_linear", "timesteps": 10},
        "training": {"steps": 1, "batch_size": 8},
        "sampling": {"sampler": "confidence", "steps": 2, "batch_size": 4, "temperature": 0.0},
    }  # fmt: skip
    for more in (KINDS[kind], groups):
        for name, settings in more.items():
            values[name] = values.get(name, {}) | settings
    return from_config_dict(values)


def save_model(
    workdir: Path,
    config: RunConfig,
    *,
    seed: int = 0,
    step: int = 1,
    says: dict[str, float] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A checkpoint of a network whose weights are wide, so that all it reads tells in its logits.

    Those are its averaged parameters; the others are 0, which no command takes unless it is told to.

    Args:
      says: letters and their probabilities at every position, in place of what it reads; a masked model's.
    """
    tokenizer = tokenizer or ByteTokenizer()
    shapes = nnx.eval_shape(lambda: make_denoiser(config, tokenizer.vocab_size, nnx.Rngs(0)))
    random = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), jnp.float32),
        nnx.to_pure_dict(nnx.state(shapes, nnx.Param)),
    )
    if says is not None:
        others = (1.0 - sum(says.values())) / (tokenizer.vocab_size - len(says))
        logits = np.full(tokenizer.vocab_size, np.log(others), np.float32)
        for letter, probability in says.items():
            (token,) = tokenizer.encode(letter)
            logits[token] = np.log(probability)
        head = params["head"]
        params["head"] = {"kernel": jnp.zeros_like(head["kernel"]), "bias": jnp.asarray(logits)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    parts = {"params": nothing, "ema": params, "process": make_process(config.process, tokenizer.vocab_size)}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(step, parts, data_state=None, config=to_dict(config), tokenizer=tokenizer.to_dict())
    return workdir
