"""The golden Mamba-2 checkpoint, and models of ours that start from such a checkpoint."""

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dimba_jax.config import from_config_dict
from dimba_jax.interop.pretrained_mamba2 import initial_params, model_settings
from dimba_jax.models.build import abstract_denoiser, make_denoiser

HERE = Path(__file__).parent / "interop"
MAKE = runpy.run_path(str(HERE / "make_golden.py"))
GOLDEN, VOCABULARY = MAKE["GOLDEN"], MAKE["VOCABULARY"]
TOLERANCE = 1e-4


def run_config(settings, *, kind="autoregressive", tokenizer=None, **model):
    direction = "causal" if kind == "autoregressive" else "untied"
    chosen = {name: value for name, value in settings.items() if name != "vocab_size"}
    return from_config_dict(
        {
            "data": {"source": "text", "source_length": 0, "target_length": 8},
            "tokenizer": tokenizer or {"model": "its.model"},
            "model": {"direction": direction, "self_conditioning": False, "chunk": 4} | chosen | model,
            "process": {"kind": kind, "schedule": "log_linear"},
            "sampling": {"sampler": "ancestral"},
        }
    )


@functools.cache
def fresh(config, vocab_size):
    graphdef, state = nnx.split(jax.jit(lambda: make_denoiser(config, vocab_size, nnx.Rngs(0)))(), nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def blank(config, vocab_size):
    """The same tree, all zeros: enough to see what is refused and where things go."""
    state = abstract_denoiser(config, vocab_size)[1]
    return nnx.to_pure_dict(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))


def started(config, folder, vocab_size=VOCABULARY):
    graphdef, params = fresh(config, vocab_size)
    return graphdef, initial_params(config, params, folder)


def network(graphdef, params):
    return nnx.merge(graphdef, params)


@jax.jit
def logits(denoiser, tokens, t):
    return denoiser(tokens, t)


def ours(folder, tokens, **more):
    config = run_config(model_settings(folder), **more)
    graphdef, params = started(config, folder)
    return np.asarray(logits(network(graphdef, params), jnp.asarray(tokens), jnp.zeros(len(tokens))))
