"""A network of tokens whose answers are known, and the sampling of rows with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dimba_jax.config import from_config_dict
from dimba_jax.diffusion import make_process
from dimba_jax.sampling.discrete.sample import sample_tokens

VOCAB, SOURCE, TARGET = 9, 3, 6
MASK = VOCAB


class Known(nnx.Module):
    """Logits from a table of each position, moved by the neighbours and by how many source tokens are visible."""

    vocab_size = mask_id = VOCAB
    calls = 1
    time_conditioned = False

    def __init__(self, source, table, watch=None):
        self.source_length = source
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))  # (l, v)
        self.moved = nnx.Param(jnp.asarray(np.random.default_rng(5).normal(size=(VOCAB + 1, VOCAB)), jnp.float32))
        self.watch = watch

    def __call__(self, tokens, t, *, visible=None, first=0, key=None):
        visible = jnp.ones(tokens.shape, bool) if visible is None else visible
        if self.watch is not None:
            jax.debug.callback(self.watch, tokens, t, visible, ordered=True)
        seen = self.moved[...][tokens] * visible[..., None]
        around = jnp.roll(seen, 1, axis=1) + jnp.roll(seen, -1, axis=1)
        prompt = jnp.sum(seen[:, : self.source_length], axis=1, keepdims=True)
        return (self.table[...][None, : tokens.shape[1]] + around + prompt)[:, first:]


def config_of(**groups):
    values = {
        "data": {"source_length": SOURCE, "target_length": TARGET, "normalize": "none"},
        "model": {"self_conditioning": False},
        "process": {"kind": "masked", "schedule": "log_linear", "time_conditioning": False},
        "sampling": {"sampler": "ancestral", "steps": 4, "batch_size": 8},
    }
    for name, more in groups.items():
        values[name] = values.get(name, {}) | more
    return from_config_dict(values)


def text_config(**groups):
    data = {"source": "text", "source_length": 0} | groups.pop("data", {})
    return config_of(data=data, **groups)


TABLE = np.random.default_rng(0).normal(size=(SOURCE + TARGET, VOCAB))


def rows(count=4, source=SOURCE, length=SOURCE + TARGET, seed=0):
    tokens = np.random.default_rng(seed).integers(3, VOCAB, (count, length)).astype(np.int32)
    editable = np.broadcast_to(np.arange(length) >= source, tokens.shape).copy()
    return tokens, editable, np.ones(tokens.shape, bool)


def run(config, parts=None, *, seed=0, stages=0, network=None, keys=None, **settings):
    tokens, editable, visible = rows(source=config.data.source_length) if parts is None else parts
    keys = jax.random.split(jax.random.key(seed), 4)[: len(tokens)] if keys is None else keys
    return sample_tokens(
        network or Known(config.data.source_length, TABLE), make_process(config.process, VOCAB),
        jnp.asarray(tokens), jnp.asarray(editable), jnp.asarray(visible), keys,
        dataclasses.replace(config.sampling, **settings), config=config, stages=stages,
    )  # fmt: skip


def watched():
    """A network that tells of its calls, and the list in which it does."""
    calls = []
    watch = lambda tokens, t, visible: calls.append((np.array(tokens), np.array(t), np.array(visible)))  # noqa: E731
    return calls, watch
